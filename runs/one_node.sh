#!/bin/bash
# A run on all GPUs of one machine: runs/one_node.sh CONFIG [more words for stablelm train]
# Any worker that dies starts the run anew from its last checkpoint, up to three times. PROCESSES=2 sets another number
# (without GPUs: PROCESSES=2 runs/one_node.sh configs/small.yml --set device=cpu).
set -euo pipefail
if (( $# < 1 )); then
  echo "usage: [PROCESSES=N] runs/one_node.sh CONFIG [--set key=value]…" >&2
  exit 2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
exec torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 -m stablelm train "$@" --resume
