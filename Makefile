# Every target makes what it needs in .venv first. No root, no system package, no weights fetched.
#   PYTHON=...       the interpreter (3.11 to 3.13); found by itself otherwise
#   TORCH_INDEX=...  a package index with the build of torch you want (see README)
#   TORCH=...        another version of torch, or "system" to use the interpreter's own
#   JOBS=...         processes for the tests (2)

JOBS ?= 2
VENV ?= .venv
PY := $(VENV)/bin/python
export PYTHON TORCH TORCH_INDEX VENV
# two processes on two cores: threads of numerical libraries would only get in each other's way
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

DEMO_READY := $(VENV)/.ready-intake-worlds
DEV_READY := $(VENV)/.ready-dev-intake-mdf-opcua-worlds
ALL_READY := $(VENV)/.ready-dev-intake-mdf-opcua-ray-worlds
SETUP := pyproject.toml constraints.txt scripts/setup.py scripts/setup.sh

.PHONY: help demo test test-all check floors names bench bench-data bench-gpu bench-lerobot bench-moe bench-checkpoint bench-rights bench-scaling offline-bundle setup clean

help:
	@echo "make demo           the whole loop on this machine: logs to a driven machine and a report, in ten minutes"
	@echo "make test           all tests that take seconds; says what was skipped and why"
	@echo "make test-all       the slow ones too"
	@echo "make check          ruff, mypy, and the floors of the house"
	@echo "make bench          measurements under bench/"
	@echo "make bench-data     loading beside LeRobot, Lance, WebDataset, HDF5; checks, faults, memory (half an hour, 3 environments)"
	@echo "make bench-gpu      steps of the 400m and 4b model and of a 1t rank on a GPU, with the interpreter's own torch"
	@echo "make bench-lerobot  our LeRobot sets in the peer's own loader, in an environment of its own"
	@echo "make bench-scaling  train 1m, 4m and 40m on several amounts of data, for hagane plan scaling (an hour of one core)"
	@echo "make bench-moe      our mixture-of-experts layer beside transformers' and torchtitan's, in an environment of its own"
	@echo "make bench-checkpoint  what saving costs training, beside torch's own; the losses after a resume on other layouts"
	@echo "make bench-rights   what jail, sealed data, ledger and permit cost, training beside plain training (an hour)"
	@echo "make names          write tests/public_names.txt again after a public name was added on purpose"
	@echo "make offline-bundle KEY=SIGNER.pem  a signed folder of wheels with an SBOM, for machines without a network"
	@echo "make setup          only the environment in $(VENV)"
	@echo "make clean          remove environments and caches (runs/ stays)"

setup: $(DEV_READY)

$(DEMO_READY): $(SETUP)
	@sh scripts/setup.sh intake worlds

$(DEV_READY): $(SETUP)
	@sh scripts/setup.sh dev intake mdf opcua worlds

$(ALL_READY): $(SETUP)
	@sh scripts/setup.sh dev intake mdf opcua ray worlds

demo: $(DEMO_READY)
	@$(PY) -m hagane demo

test: $(DEV_READY)
	@$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) -rs

test-all: $(ALL_READY)
	@$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) -rs -m "slow or not slow"

# all four are run, so that one call tells all
check: $(DEV_READY)
	@bad=0; \
	$(PY) -m ruff check --output-format concise -q . || bad=1; \
	$(PY) -m ruff format --check --output-format concise -q . || bad=1; \
	$(PY) -m mypy --no-error-summary || bad=1; \
	$(ONE_THREAD) $(PY) -m pytest tests/test_floors.py || bad=1; \
	[ $$bad -eq 0 ] && echo "check: ruff, mypy and the floors hold"

floors: $(DEV_READY)
	@$(PY) -m pytest tests/test_floors.py

names: $(DEV_READY)
	@$(PY) -m tests.test_public_names

bench: $(DEV_READY)
	@sh scripts/bench.sh "$(PY)"

bench-data: $(DEV_READY)
	@sh scripts/bench_data.sh "$(PY)" $(BENCH_DATA)

bench-scaling: $(DEV_READY)
	@$(ONE_THREAD) $(PY) bench/scaling/run.py $(BENCH_SCALING)

bench-lerobot: $(DEV_READY)
	@sh scripts/bench_lerobot.sh "$(PY)"

bench-moe: $(DEV_READY)
	@sh scripts/bench_moe.sh "$(PY)" $(BENCH_MOE)

# takes the interpreter's own torch: PYTHON=... names it
bench-gpu:
	@sh scripts/bench_gpu.sh "$(or $(PYTHON),python3)" $(BENCH_GPU)

bench-checkpoint: $(DEV_READY)
	@$(ONE_THREAD) $(PY) bench/checkpoint/stall.py --out bench/results/checkpoint-$$(date +%F).json
	@$(ONE_THREAD) $(PY) -m tests.test_checkpoint_resume 50

bench-rights: $(DEV_READY)
	@$(ONE_THREAD) $(PY) -m bench.rights --out bench/results/rights-$$(date +%F).json $(BENCH_RIGHTS)

# KEY=... signs it (`hagane contract keygen` makes one); OFFLINE="--extras intake --out DIR" and the like
offline-bundle: $(DEV_READY)
	@$(PY) scripts/offline_bundle.py --key "$(KEY)" $(OFFLINE)

clean:
	rm -rf .venv .venv-lerobot .venv-moe .venv-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
