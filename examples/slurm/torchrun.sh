#!/bin/sh
# The same run on machines without a scheduler: start this on every machine, with the same HEAD.
#
#   NODES=2 HEAD=node-1:29500 RUN=/shared/runs/big SITE=/shared/site sh examples/slurm/torchrun.sh --config big.toml
#
# One machine needs no HEAD: NODES=1. RANKS is how many a machine has: gpu (its GPUs), cpu (its cores), or a number.
set -eu
run=${RUN:?set RUN to the folder of the run}
site=${SITE:?set SITE to the folder of the site}
if [ -e "$run/config.toml" ]; then
    set -- --resume
fi
# "--" ends torchrun's own options: it would take --run for one of them
exec torchrun --nnodes="${NODES:-1}" --nproc-per-node="${RANKS:-gpu}" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="${HEAD:-localhost:0}" --rdzv-id="${ID:-hagane}" \
    -m -- hagane train --home "$site" --run "$run" "$@"
