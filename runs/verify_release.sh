#!/usr/bin/env bash
# Is this implementation right about the released weights? For a reader with network (5.6 GB) and 12 GB of memory.
#
#   runs/verify_release.sh                                     downloads stabilityai/stablelm-3b-4e1t and checks it
#   runs/verify_release.sh owner/name                          another model of the family, from the Hub or its cache
#   PARAMETERS=… TENSORS=… BYTES=… runs/verify_release.sh …    what another model must have
#
# Checks: the number of tensors, of parameters and of bytes of weights; that every weight is finite; the logits beside
# `transformers`; the model card's own snippet. The nine zero-shot tasks (average 66.93) are not part of it yet.
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL=${1:-stabilityai/stablelm-3b-4e1t}
PARAMETERS=${PARAMETERS:-2795443200}
TENSORS=${TENSORS:-356}
BYTES=${BYTES:-5590886400}
PYTHON=${PYTHON:-.venv-oracle/bin/python}
[ -x "$PYTHON" ] || make .venv-oracle/.everything

echo "== $MODEL: files"
folder=$("$PYTHON" - "$MODEL" <<'PY'
import sys
from stablelm.interchange.hub import resolve
print(resolve(sys.argv[1]))
PY
)
"$PYTHON" -m stablelm inspect "$folder" --verify --kernels
"$PYTHON" - "$folder" "$PARAMETERS" "$TENSORS" "$BYTES" <<'PY'
import sys
from pathlib import Path
from stablelm.interchange.inspection import describe

folder, *wanted = sys.argv[1:]
facts = describe(Path(folder))
found = [facts["parameters"], facts["weights"]["tensors"], facts["weights"]["tensor_bytes"]]
for name, value, number in zip(("parameters", "tensors", "bytes of weights"), found, map(int, wanted), strict=True):
    print(f"{name}: {value:,} ({'as released' if value == number else f'WRONG: {number:,} expected'})")
sys.exit(found != list(map(int, wanted)))
PY

echo "== $MODEL: logits beside transformers"
"$PYTHON" tools/compare_logits.py "$folder"

echo "== $MODEL: the card's snippet"
"$PYTHON" - "$MODEL" <<'PY'
import sys
from pathlib import Path
from stablelm import AutoModelForCausalLM, AutoTokenizer
from stablelm.interchange.hub import resolve

name = sys.argv[1]
if not (resolve(name) / "tokenizer.json").is_file():
    sys.exit(f"{name}: no tokenizer.json; the snippet was not run")
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, torch_dtype="auto")
inputs = tokenizer("The weather is always wonderful", return_tensors="pt").to(model.device)
tokens = model.generate(**inputs, max_new_tokens=64, temperature=0.75, top_p=0.95, do_sample=True)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
PY
echo "== $MODEL: everything agrees"
