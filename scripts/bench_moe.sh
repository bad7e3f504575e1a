#!/bin/sh
# Our mixture-of-experts layer beside the peers' in one process of an environment of their own (.venv-moe), on one
# thread. The table is printed and the result goes to bench/results with the date. Arguments are those of
# bench/moe/run.py.
set -u
cd "$(dirname "$0")/.." || exit 1
python=$1
shift
sh scripts/peer_env.sh moe "$python" || exit 1
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TORCH_CPP_LOG_LEVEL=ERROR HF_HUB_OFFLINE=1 PYTHONPATH=src
.venv-moe/bin/python bench/moe/run.py "$@"
