#!/bin/bash
# From a folder of texts to a small model that writes, on a laptop: runs/laptop.sh TEXTS OUT [STEPS]
# Half an hour on two cores with the settings below; configs/small.yml and configs/data/example.yml have every key.
set -euo pipefail
if (( $# < 2 )); then
  echo "usage: runs/laptop.sh TEXTS OUT [STEPS]      TEXTS: a folder of .txt, .md, .py or .jsonl files" >&2
  exit 2
fi
texts=$1 out=$2 steps=${3:-600}
mkdir -p "$out"
[[ -d $out/tokenizer ]] || stablelm tokenizer train "$out/tokenizer" "$texts" --vocab-size 8192
cat > "$out/recipe.yml" <<RECIPE
out: "$out/data"
tokenizer: "$out/tokenizer"
held_out: 0.05
sources:
  - {name: texts, paths: ["$texts"]}
RECIPE
[[ -f $out/data/manifest.json ]] || stablelm data prepare "$out/recipe.yml"
cat > "$out/run.yml" <<RUN
out: "$out/run"
model: {preset: stablelm-12m, vocab_size: 8192}
data: {path: "$out/data", epochs: {texts: 1000}}
steps: $steps
batch: {sequences: 16, micro_sequences: 4, sequence_length: 256}
optimizer: {lr: 1.0e-3}
checkpoint: {every: 100}
evaluation: {every: 100, windows: 32}
RUN
stablelm train "$out/run.yml" --resume
stablelm report "$out/run"
stablelm export "$out/run" "$out/model" --dtype bf16
stablelm generate "$out/model" "The" --max-new-tokens 40
