#!/bin/sh
# The peer's own loader in an environment of its own (.venv-lerobot), then every bench/*lerobot*.py in it.
# The peer asks for versions that contradict ours, so it is installed without its dependencies and given those
# it really imports.
set -u
cd "$(dirname "$0")/.." || exit 1
env=.venv-lerobot
pip="$env/bin/python -m pip --disable-pip-version-check --no-input"
if [ ! -f $env/.ready ] || [ scripts/bench_lerobot.sh -nt $env/.ready ]; then
    echo "bench-lerobot: making $env (some minutes, 2 GB)"
    VENV=$env PYTHON="$1" sh scripts/setup.sh || exit 1
    $pip install -q 'datasets<5' 'huggingface-hub<0.36' 'accelerate<2' 'diffusers<0.36' einops 'av<16' jsonlines \
        'packaging<26' draccus==0.10.0 deepdiff termcolor safetensors gymnasium opencv-python-headless imageio &&
        $pip install -q --no-deps lerobot==0.4.4 torchvision==0.28.0 torchcodec==0.12.0 || {
        echo "bench-lerobot: the peer could not be installed; nothing was checked" >&2
        exit 1
    }
    touch $env/.ready
fi
failed=0
found=0
for file in bench/*lerobot*.py; do
    [ -f "$file" ] || continue
    found=1
    echo "== $file"
    HF_HUB_OFFLINE=1 $env/bin/python "$file" || failed=1
done
[ $found -eq 1 ] || echo "bench-lerobot: no check here yet"
exit $failed
