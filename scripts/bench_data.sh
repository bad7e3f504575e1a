#!/bin/sh
# The figures of data, in one run: training data beside the peers (each in an environment of its own), the cost of the
# checks, faults counted, memory. Results go to bench/results with the date. A peer that cannot be installed is named in
# the table and the others are measured. Arguments are those of bench/data/run.py.
set -u
cd "$(dirname "$0")/.." || exit 1
python=$1
shift
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
sh scripts/peer_env.sh lerobot "$python" || echo "bench-data: LeRobot will be missing from the table" >&2
sh scripts/peer_env.sh peers "$python" || echo "bench-data: Lance, WebDataset and HDF5 will be missing" >&2
failed=0
results=bench/results
today=$(date +%F)
mkdir -p $results
"$python" bench/data/run.py "$@" || failed=1
for what in integrity faults memory; do
    echo "== $what"
    "$python" bench/data/$what.py --out $results/$what-"$today".json || failed=1
done
exit $failed
