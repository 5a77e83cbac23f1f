#!/usr/bin/env bash
# The first run on a real model: synth and train, a twin that is killed once in the middle of
# either, started again and compared byte by byte, and the base's HHH figures in fp32.
#
#   MODEL=folder-of-SmolLM2-135M-Instruct DATA=folder-of-benchmarks OUT=runs/first bash run.sh
#
# OUT/log says how long each command took.
set -euo pipefail
source "$(dirname "$0")/../common.sh"
killed_after() {  # seconds, then the command
  local code=0
  timeout --signal=KILL "$@" || code=$?
  [ $code = 137 ] || { echo "not killed, it ended with $code: choose fewer seconds"; exit 1; }
  echo "killed after $1 s: $4" | tee -a "$OUT/log"
}
synth=(synth --model "$MODEL" --triplets 200)
train=(train --model "$MODEL" --data "$OUT/data/triplets.jsonl" --lr 3e-4)

ptalign "${synth[@]}" --out "$OUT/data"
ptalign "${train[@]}" --out "$OUT/adapter"
# The base again in fp32, to be compared with an independent scorer's figures.
ptalign eval --model "$MODEL" --tasks hhh --dtype float32 --data-dir "$DATA" --out "$OUT/eval-fp32"

killed_after "${KILL_SYNTH:-120}" "$PYTHON" ptalign.py "${synth[@]}" --out "$OUT/twin-data"
ptalign "${synth[@]}" --out "$OUT/twin-data"
killed_after "${KILL_TRAIN:-90}" "$PYTHON" ptalign.py "${train[@]}" --out "$OUT/twin-adapter"
ptalign "${train[@]}" --out "$OUT/twin-adapter"
for file in triplets instructions constraints rejects calls calls.toxic; do
  cmp "$OUT/data/$file.jsonl" "$OUT/twin-data/$file.jsonl"
done
cmp "$OUT/adapter/adapter_model.safetensors" "$OUT/twin-adapter/adapter_model.safetensors"
echo "the killed twin ended with the same bytes" | tee -a "$OUT/log"

published eval-fp32 eval-fp32
cp "$OUT/data/report.md" "$here/data-report.md"
cp "$OUT/adapter/metrics.jsonl" "$here/"
plain "$OUT/adapter/train_config.json" > "$here/train_config.json"
