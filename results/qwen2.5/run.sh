#!/usr/bin/env bash
# A real model made safer, and what each part of the method adds (README.md has the protocol).
#
#   MODEL=folder-of-a-chat-model DATA=folder-of-benchmark-rows OUT=runs/qwen-1.5b \
#     bash results/qwen2.5/run.sh data dev tables
#
# Stages, in this order, as many as are named:
#   data   400 pairs and benign rows of the model's own
#   dev    learning rates of PT-ALIGN, measured on the sets to develop on
#   arms   what each part adds, three seeds, on the sets to develop on
#   tables PT-ALIGN, MLE alone and DPO, three seeds each, on the sets to be reported
# ROWS=FILE takes another model's rows instead of `data` (no self-alignment then). LR, EPOCHS and
# RANK are what `dev` chose. Started again it goes on where it stopped; OUT/log has the times.
set -euo pipefail
source "$(dirname "$0")/../common.sh"
: "${LR:=2e-4}" "${EPOCHS:=2}" "${RANK:=4}" "${ROWS:=$OUT/data/triplets.jsonl}"
SEEDS=(0 1 2)

tuned() {  # name, seed, then options of train; its folder is in $adapters afterwards
  local out=$OUT/$1-$2 seed=$2
  shift 2
  ptalign train --model "$MODEL" --data "$ROWS" --lr "$LR" --epochs "$EPOCHS" --rank "$RANK" \
    --alpha $((2 * RANK)) --batch-tokens 1024 --validation 0.1 --exclude "$DATA" --seed "$seed" \
    "$@" --out "$out"
  adapters+=("$out")
}
develop() {  # name: the adapters of $adapters on the sets to develop on
  ptalign eval --model "$MODEL" --adapter "${adapters[@]}" --data-dir "$DATA" --limit 200 \
    --tasks refusal --sets strongreject,safety_tuned_llamas,self_instruct --max-new-tokens 64 \
    --out "$OUT/dev-$1"
}
arm() {  # name, then options of train: three seeds, on the sets to develop on
  local name=$1
  shift
  adapters=()
  for seed in "${SEEDS[@]}"; do tuned "$name" "$seed" "$@"; done
  develop "$name"
}
first_pairs() {  # number: so many pairs of ROWS, and its other rows in proportion
  "$PYTHON" - "$ROWS" "$OUT/first-$1.jsonl" "$1" <<'PYTHON'
import sys

sys.path.insert(0, ".")
from support.files import read_jsonl, write_jsonl

source, out, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = [row for _, row in read_jsonl(source)]
pairs = [row for row in rows if row["toxic"] is not None]
rest = [row for row in rows if row["toxic"] is None]
write_jsonl(out, pairs[:n] + rest[: round(n * len(rest) / len(pairs))], mode=0o600)
PYTHON
}

data() {
  ptalign synth --model "$MODEL" --triplets 400 --benign-share 0.3 --out "$OUT/data"
}
dev() {
  local LR
  adapters=()
  for LR in 1e-4 2e-4 4e-4; do tuned "rate-$LR" 0; done
  develop rates
}
arms() {
  arm pt
  arm mle --penalty 0  # as many steps as PT-ALIGN: --objective mle would have fewer
  arm dpo --objective dpo
  arm no-mask --mask none
  arm npo --objective npo
  arm ga --objective ga
  arm lambda-0.1 --penalty 0.1
  arm lambda-1.0 --penalty 1.0
  local ROWS=$ROWS all=$ROWS
  for n in 100 200; do
    ROWS=$all
    first_pairs "$n"
    ROWS=$OUT/first-$n.jsonl
    EPOCHS=$((EPOCHS * 400 / n)) arm "pairs-$n"  # equal steps
  done
}
suite() {  # name: the adapters of $adapters on the sets to be reported
  ptalign eval --model "$MODEL" --adapter "${adapters[@]}" --data-dir "$DATA" \
    --tasks hhh,hhh_ab,truthfulqa,mmlu,refusal --max-new-tokens 64 --out "$OUT/suite-$1"
  ptalign eval --model "$MODEL" --adapter "${adapters[@]}" --data-dir "$DATA" --limit 30 \
    --tasks jailbreak,genetic,prefill,depth --genetic 5x10x16 --max-new-tokens 64 \
    --out "$OUT/attacks-$1"
}
tables() {
  local name options
  for name in pt mle dpo; do
    case $name in pt) options=() ;; mle) options=(--penalty 0) ;; dpo) options=(--objective dpo) ;; esac
    adapters=()
    for seed in "${SEEDS[@]}"; do tuned "$name" "$seed" "${options[@]}"; done
    suite "$name"
  done
}
for stage in "$@"; do "$stage"; done
