#!/bin/sh
# Every figure of a GPU, in one run with the interpreter that is named (or python3): its own torch from 2.11 on, built
# for the GPU, NumPy and safetensors. No network, no environment of our own. Results go to bench/results with the date.
# Arguments are those of bench/gpu/steps.py.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${1:-python3}
[ $# -gt 0 ] && shift
export PYTHONPATH=src TORCH_CPP_LOG_LEVEL=ERROR PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
if ! "$python" -c 'import numpy, safetensors, torch; assert torch.cuda.is_available()' 2>/dev/null; then
    echo "bench-gpu: $python has no torch that finds a GPU, or lacks numpy or safetensors" >&2
    echo "  next: PYTHON=/path/to/python make bench-gpu; --tiny --device cpu after the script's name tries the code" >&2
    case " $* " in *" --device cpu "*) ;; *) exit 1 ;; esac
fi
today=$(date +%F)
failed=0
case " $* " in
*" --tiny "*) ;;
*)
    for size in 400m 4b 1t; do
        "$python" bench/moe/throughput.py --size $size --tokens 16384 --out bench/results/gpu-moe-$size-"$today".json ||
            failed=1
    done
    ;;
esac
"$python" bench/gpu/steps.py --checkpoint "$@" || failed=1
exit $failed
