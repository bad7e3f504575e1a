#!/bin/sh
# The peer's own loader in an environment of its own (.venv-lerobot), then every bench/*lerobot*.py in it.
set -u
cd "$(dirname "$0")/.." || exit 1
env=.venv-lerobot
sh scripts/peer_env.sh lerobot "$1" || exit 1
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
