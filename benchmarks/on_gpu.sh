#!/usr/bin/env bash
# What one GPU should answer in 8 minutes: are the kernels and the packed attention right there, and
# how fast are the loss head, a training step and sampling beside their peers.
#
#   OUT=results/speed bash benchmarks/on_gpu.sh                 PYTHON=python3 and LIMIT=480 (s) by default
#   SKIP=tests,head ROUNDS=3 OUT=results/speed bash benchmarks/on_gpu.sh     without these parts, fewer turns
#   TRY=1 OUT=try bash benchmarks/on_gpu.sh          most of the parts, tiny, on a CPU
#
# Needs no network. A peer that is not installed is listed as missing in the part's report. Each
# part ends at its own timeout or at LIMIT, whichever is first, leaves its output in OUT/log.txt and,
# if it measures, a JSON file in OUT (the log has the tables of `recorded` and `sweep`); one that
# fails stops no other, but the exit code is then 1. Most worth knowing first.
# Seen on a fresh H100 machine: 20 s until torch is imported for the first time, 5 to 10 s a part
# later, and 14 µs of Python for every kernel, so that a small model's step takes 0.25 s at a peer.
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3} OUT=${OUT:-results/speed} LIMIT=${LIMIT:-480}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1
mkdir -p "$OUT" || exit 2
LOG=$OUT/log.txt SCRATCH=$(mktemp -d) FAILED=
trap 'rm -rf "$SCRATCH"' EXIT
: > "$LOG"

HEADS=naive,compile,cce-exact,liger,liger-16,ours,ours-triton,ours-flash
STEPS=ours,ours-launched,peft,peft-autocast,peft-liger
if [ -n "$TRY" ]; then
    DEVICE=cpu ROUNDS=${ROUNDS:-2}
    HEADS=naive,liger,ours SIZES=toy ROWS=48 LARGE=toy LARGE_ROWS=32
    STEPS=ours,peft,peft-liger SHAPES=toy CASES=8/16/16x2
else
    DEVICE=cuda ROUNDS=${ROUNDS:-5}
    SIZES=smollm2,llama3 ROWS=8192 LARGE=qwen3-8b LARGE_ROWS=8192
    SHAPES="smollm2 llama2-7b" CASES=64/128/128x8
fi

# part NAME SECONDS COMMAND...: the command's own JSON is $SCRATCH/NAME.json
part() {
    local name=$1 limit=$2 began=$SECONDS left=$((LIMIT - SECONDS)) code
    shift 2
    [[ ,$SKIP, != *,$name,* ]] || return
    if [ "$left" -lt 5 ]; then
        echo "$name: left out, $SECONDS s of $LIMIT are over"
        return
    fi
    echo "=== $name: $*" >> "$LOG"
    timeout -k 5 $((limit < left ? limit : left)) "$@" >> "$LOG" 2>&1
    code=$?
    [ ! -e "$SCRATCH/$name.json" ] || mv "$SCRATCH/$name.json" "$OUT/$name.json"
    [ $code = 0 ] || [ $code = 124 ] || FAILED+=" $name"  # 124: its time was over
    echo "$name: $((SECONDS - began)) s, exit code $code" | tee -a "$LOG"
}

[ -n "$TRY" ] || part recorded 60 "$PYTHON" benchmarks/recorded.py
part tests 150 "$PYTHON" -m pytest -v -m gpu -p no:cacheprovider -rfEs \
    tests/test_kernels.py tests/test_packing.py tests/test_on_gpu.py
for shape in $SHAPES; do
    part "step-$shape" 90 "$PYTHON" benchmarks/train_step.py --shape "$shape" --cases $CASES \
        --device $DEVICE --rounds $ROUNDS --only $STEPS --out "$SCRATCH/step-$shape.json"
done
part head-qwen3-8b 90 "$PYTHON" benchmarks/head.py --sizes $LARGE --rows $LARGE_ROWS \
    --device $DEVICE --rounds $ROUNDS --only $HEADS --out "$SCRATCH/head-qwen3-8b.json"
# Sampling, from folders with random weights and the organism's tokenizer.
sample() {  # SHAPE SECONDS OPTIONS...
    local shape=$1 limit=$2
    shift 2
    if [ -n "$TRY" ]; then
        set -- --rows 2 --new-tokens 4 --cases plain --rounds 1
    fi
    part "generate-$shape" "$limit" bash -e -c '
        "$1" benchmarks/shapes.py "$2" "$3/$2"
        "$1" benchmarks/generate.py --model "$3/$2" --out "$3/generate-$2.json" "${@:4}"' \
        sample "$PYTHON" "$shape" "$SCRATCH" --device $DEVICE "$@"
    rm -rf "${SCRATCH:?}/$shape"
}
if [ -n "$TRY" ]; then
    sample toy 60
else
    sample 0.5b 100 --rows 64 --rounds 2
    # Which blocks our kernels should take; its tables are in the log.
    part sweep 70 "$PYTHON" benchmarks/head.py --sweep --sizes $LARGE --rounds 3 \
        --out "$SCRATCH/blocks.json"
fi
part head 110 "$PYTHON" benchmarks/head.py --sizes $SIZES --rows $ROWS --device $DEVICE \
    --rounds $ROUNDS --only $HEADS --out "$SCRATCH/head.json"
[ -n "$TRY" ] || sample llama2-7b 80 --rows 16 --rounds 2 --cases plain,prefix
# Every form of the loss in every case, at the blocks that a GPU uses, in the time that is left.
part all-tests 120 "$PYTHON" -m pytest -q -x -p no:cacheprovider tests/test_losses.py \
    --deselect tests/test_losses.py::test_gradcheck
grep '^|\|^###\|^Not run\|^Floor\|passed\|failed\|^FAILED\|^SKIPPED\|^ERROR' "$LOG"
[ -z "$FAILED" ] || { echo "failed:$FAILED" >&2 && exit 1; }
