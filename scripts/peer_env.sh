#!/bin/sh
# usage: peer_env.sh lerobot|peers|moe PYTHON    makes .venv-lerobot, .venv-peers or .venv-moe, once
# Peers are measured in environments of their own: hagane never depends on one. LeRobot asks for versions that
# contradict ours, so it is installed without its dependencies and given those it really imports.
set -u
cd "$(dirname "$0")/.." || exit 1
env=.venv-$1
pip="$env/bin/python -m pip --disable-pip-version-check --no-input install -q"
[ -f "$env/.ready" ] && [ ! scripts/peer_env.sh -nt "$env/.ready" ] && exit 0
echo "peer_env: making $env (some minutes, 1 to 2 GB)"
VENV=$env PYTHON="$2" sh scripts/setup.sh || exit 1
case $1 in
lerobot)
    $pip 'datasets<5' 'huggingface-hub<0.36' 'accelerate<2' 'diffusers<0.36' einops 'av<16' jsonlines \
        'packaging<26' draccus==0.10.0 deepdiff termcolor safetensors gymnasium opencv-python-headless imageio &&
        $pip --no-deps lerobot==0.4.4 torchvision==0.28.0 torchcodec==0.12.0
    ;;
# torch is there already (setup.sh, pinned): the peers would bring its GPU build
moe) $pip transformers==5.24.0 torchtitan==0.3.0 triton==3.9.0 ;;
peers) $pip pylance==14.0.2 webdataset==1.0.2 h5py pillow ;;
*)
    echo "peer_env: there is no environment $1" >&2
    exit 2
    ;;
esac || {
    echo "peer_env: $1 could not be installed; nothing of it is measured" >&2
    exit 1
}
touch "$env/.ready"
