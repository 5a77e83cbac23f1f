# Sourced by the run.sh of the folders beside it: their settings, and commands whose time is logged.
: "${MODEL:?name the model folder}" "${DATA:?name the folder of benchmark rows}" "${OUT:=runs/first}"
PYTHON=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$here/../.."

ptalign() {
  local began=$SECONDS
  "$PYTHON" ptalign.py "$@" || test $? = 3   # 3: synth is short of its target
  echo "$1 $(basename "${*: -1}"): $((SECONDS - began)) s" | tee -a "$OUT/log"
}
