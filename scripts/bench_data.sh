#!/bin/sh
# Training data side by side with the peers, each in an environment of its own; see bench/data/run.py.
# A peer that cannot be installed is named in the table and the others are measured.
set -u
cd "$(dirname "$0")/.." || exit 1
python=$1
shift
sh scripts/peer_env.sh lerobot "$python" || echo "bench-data: LeRobot will be missing from the table" >&2
sh scripts/peer_env.sh peers "$python" || echo "bench-data: Lance, WebDataset and HDF5 will be missing" >&2
exec "$python" bench/data/run.py "$@"
