#!/usr/bin/env bash
# A real model made safer, and what each part of the method adds (the protocol is in protocol.md).
#
#   MODEL=folder-of-a-chat-model DATA=folder-of-benchmark-rows OUT=runs/qwen-1.5b \
#     bash results/qwen2.5/run.sh data dev tables
#
# Stages, in this order, as many as are named:
#   data   PAIRS pairs of the model's own, an equal part by each of DATA_SEEDS, and benign rows
#   dev    learning rates of PT-ALIGN, measured on the sets to develop on
#   arms   what each part adds, three seeds, on the sets to develop on
#   tables PT-ALIGN, MLE alone and DPO, three seeds each, on the sets to be reported
# ROWS=FILE takes another model's rows instead of `data` (no self-alignment then), and LR another
# learning rate than the one that `dev` chose. JOBS trainings or evaluations run at a time: 1 on a
# CPU, more on a GPU, which waits for Python. For a smaller look name fewer SEEDS, RATES or ARMS, of
# the arms to be reported (TABLES) or of their tasks (CHOICES, ATTACKS ...), or fewer prompts a
# set to develop on (LIMIT). Started again it goes on where it stopped; OUT/log has the times.
# DTYPE=float32 pays on a CPU without matrix units for bfloat16. BLOCK and ROUND are synth's --block
# and --round-calls, of runs that share one GPU's memory.
set -euo pipefail
: "${MODEL:?name the model folder}" "${DATA:?name the folder of benchmark rows}"
: "${OUT:=runs/qwen}" "${PYTHON:=python}"
: "${LR:=}" "${EPOCHS:=2}" "${RANK:=4}" "${DTYPE:=auto}" "${JOBS:=1}"
: "${VALIDATION:=0.1}" "${PAIRS:=402}" "${DATA_SEEDS:=0 1 2 3 4 5}" "${BLOCK:=}" "${ROUND:=}"
: "${SEEDS:=0 1 2}" "${RATES:=1e-4 2e-4 4e-4}" "${LIMIT:=200}"
: "${ARMS:=pt mle dpo no-mask npo ga lambda-0.1 lambda-1.0 pairs-100 pairs-200 no-benign}"
: "${TABLES:=pt mle dpo}"
: "${REFUSAL=refusal}" "${CHOICES=hhh,hhh_ab,truthfulqa,mmlu}"  # each may be empty
: "${ATTACKS=jailbreak,prefill,depth}" "${GENETIC=5x10x16}"  # likewise

case $OUT in /*) ;; *) OUT=$PWD/$OUT ;; esac
case $OUT in *[[:space:]]*) echo "OUT holds a space: name another folder" >&2 && exit 2 ;; esac
mkdir -p "$OUT"
for name in MODEL DATA OUT ROWS; do  # absolute, as this goes on in the repository's root
  if [ -e "${!name:-}" ]; then
    printf -v "$name" %s "$(cd "$(dirname "${!name}")" && pwd)/$(basename "${!name}")"
  fi
done
: "${ROWS:=$OUT/rows.jsonl}"
cd "$(dirname "$0")/../.."

ptalign() {  # a command, its time logged
  local began=$SECONDS
  "$PYTHON" ptalign.py "$@" || test $? = 3   # 3: synth is short of its target
  echo "$1 $(basename "${*: -1}"): $((SECONDS - began)) s" | tee -a "$OUT/log"
}
one_of_jobs() {
  if [ "$JOBS" = 1 ]; then "$@"; return; fi
  while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
  "$@" &
}
all_jobs() {
  while [ -n "$(jobs -p)" ]; do wait -n; done
}
tuned() {  # name, seed, then options of train: its folder is $OUT/name-seed
  local out=$OUT/$1-$2 seed=$2
  shift 2
  one_of_jobs ptalign train --model "$MODEL" --data "$ROWS" --lr "${LR:=$(cat "$OUT/rate")}" \
    --epochs "$EPOCHS" --rank "$RANK" --alpha $((2 * RANK)) --batch-tokens 1024 \
    --validation "$VALIDATION" --exclude "$DATA" --seed "$seed" --dtype "$DTYPE" "$@" --out "$out"
}
develop() {  # name, then folders of adapters: these on the sets to develop on
  local name=$1
  shift
  one_of_jobs ptalign eval --model "$MODEL" --adapter "$@" --data-dir "$DATA" --limit "$LIMIT" \
    --tasks refusal --sets strongreject,safety_tuned_llamas,self_instruct --max-new-tokens 64 \
    --dtype "$DTYPE" --out "$OUT/dev-$name"
}
arm() {  # a name of ARMS: all its seeds
  local name=$1 seed options=()
  local ROWS=$ROWS EPOCHS=$EPOCHS
  case $name in
    pt) ;;
    mle) options=(--penalty 0) ;;  # as many steps as PT-ALIGN: --objective mle would have fewer
    dpo | npo | ga) options=(--objective "$name") ;;
    no-mask) options=(--mask none) ;;
    lambda-*) options=(--penalty "${name#lambda-}") ;;
    pairs-*)
      # As near to equal steps as whole epochs come.
      EPOCHS=$(((2 * EPOCHS * $(first_pairs "${name#pairs-}") / ${name#pairs-} + 1) / 2))
      ROWS=$OUT/first-${name#pairs-}.jsonl ;;
    no-benign)
      (umask 077 && grep -v '"kind": "benign"' "$ROWS" > "$OUT/no-benign.jsonl")
      ROWS=$OUT/no-benign.jsonl ;;
    *) echo "no arm $name" >&2 && exit 2 ;;
  esac
  for seed in $SEEDS; do tuned "$name" "$seed" ${options[@]+"${options[@]}"}; done
}
folders() {  # name: the adapters of all its seeds
  local seed
  for seed in $SEEDS; do echo "$OUT/$1-$seed"; done
}
first_pairs() {  # number: so many pairs of ROWS, and its other rows in proportion; how many it has
  "$PYTHON" - "$ROWS" "$OUT/first-$1.jsonl" "$1" <<'PYTHON'
import sys

sys.path.insert(0, ".")
from support.files import read_jsonl, write_jsonl

source, out, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = [row for _, row in read_jsonl(source)]
pairs = [row for row in rows if row["toxic"] is not None]
kept = pairs[:n]
for kind in ("both", "positive", "benign"):  # of rows with a positive answer alone
    rest = [row for row in rows if row["toxic"] is None and row["kind"] == kind]
    kept += rest[: round(n * len(rest) / len(pairs))]
write_jsonl(out, kept, mode=0o600)
print(len(pairs))
PYTHON
}

data() {  # runs apart, which a GPU makes at a time; their rows become OUT/rows.jsonl
  local seed n seeds=($DATA_SEEDS)
  n=$((PAIRS / ${#seeds[@]}))
  for seed in "${seeds[@]}"; do
    one_of_jobs ptalign synth --model "$MODEL" --triplets "$n" --benign-share 0 --seed "$seed" \
      ${BLOCK:+--block "$BLOCK"} ${ROUND:+--round-calls "$ROUND"} --out "$OUT/data-$seed"
  done
  one_of_jobs ptalign synth --model "$MODEL" --positives-only --triplets 19 --benign-share 0.9 \
    --seed 0 ${BLOCK:+--block "$BLOCK"} --round-calls 128 --out "$OUT/data-benign"
  all_jobs
  rows
}
rows() {
  local name files=()
  for name in $DATA_SEEDS benign; do files+=("$OUT/data-$name/triplets.jsonl"); done
  "$PYTHON" - "$OUT/rows.jsonl" "$DATA" "${files[@]}" <<'PYTHON'
import sys
from pathlib import Path

sys.path.insert(0, ".")
from support.contamination import ASKED, prompt_hash
from support.files import read_jsonl, write_jsonl
from synthesis.claims import claim_of
from synthesis.rouge import RougePool

out, data, *sources = sys.argv[1:]
known = {prompt_hash(row[field]) for file in Path(data).glob("*.jsonl")
         for _, row in read_jsonl(file) for field in ASKED if isinstance(row.get(field), str)}
rows = [row | {"id": f"{Path(source).parent.name}/{row['id']}"}
        for source in sources for _, row in read_jsonl(source)]
kept, pool = [], RougePool(7, 10)  # as near as synth lets two requests be
for row in rows:
    text = claim_of(row["prompt"]) or row["prompt"]  # in one frame claims would look alike
    if prompt_hash(row["prompt"]) not in known and not pool.nearest_hit(text):
        kept.append(row)
        pool.add(text)
write_jsonl(out, kept, mode=0o600)
print(f"{len(rows) - len(kept)} of {len(rows)} rows left out: their requests stand in a benchmark, "
      "or are near one of another run")
PYTHON
}
dev() {
  local LR adapters=()
  for LR in $RATES; do
    tuned "rate-$LR" 0
    adapters+=("$OUT/rate-$LR-0")
  done
  all_jobs
  develop rates "${adapters[@]}"
  all_jobs
  "$PYTHON" benchmarks/qwen_tables.py "$OUT" rate $RATES > "$OUT/rate"
  if [ ! -e "$OUT/pt-0" ]; then  # PT-ALIGN's first seed
    rm -rf "$OUT/.pt-0" && cp -r "$OUT/rate-$(cat "$OUT/rate")-0" "$OUT/.pt-0"
    mv "$OUT/.pt-0" "$OUT/pt-0"
  fi
}
arms() {
  local name
  for name in $ARMS; do arm "$name"; done
  all_jobs
  for name in $ARMS; do develop "$name" $(folders "$name"); done
  all_jobs
}
suite() {  # an arm, on the sets to be reported
  [ -z "$REFUSAL" ] || one_of_jobs ptalign eval --model "$MODEL" --adapter $(folders "$1") \
    --data-dir "$DATA" --tasks "$REFUSAL" --max-new-tokens 64 \
    --dtype "$DTYPE" --out "$OUT/refusal-$1"
  [ -z "$CHOICES" ] || one_of_jobs ptalign eval --model "$MODEL" --adapter $(folders "$1") \
    --data-dir "$DATA" --tasks "$CHOICES" --dtype "$DTYPE" --out "$OUT/choices-$1"
  [ -z "$ATTACKS" ] || one_of_jobs ptalign eval --model "$MODEL" --adapter $(folders "$1") \
    --data-dir "$DATA" --limit 30 --tasks "$ATTACKS" --max-new-tokens 64 \
    --dtype "$DTYPE" --out "$OUT/attacks-$1"
  # What it finds on one adapter says nothing of another, so it takes the first seed's alone.
  [ -z "$GENETIC" ] || one_of_jobs ptalign eval --model "$MODEL" --adapter "$OUT/$1-${SEEDS%% *}" \
    --data-dir "$DATA" --tasks genetic --genetic "$GENETIC" --max-new-tokens 64 \
    --dtype "$DTYPE" --out "$OUT/genetic-$1"
}
tables() {
  local name
  for name in $TABLES; do arm "$name"; done
  all_jobs
  for name in $TABLES; do suite "$name"; done
  all_jobs
}
for stage in "$@"; do "$stage"; done
