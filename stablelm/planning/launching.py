"""The batch script that trains a run on a Slurm cluster: `stablelm launch slurm CONFIG`.

One task for each GPU; the tasks find each other by Slurm's own variables (`training/parallel/launch.py`), so
no launcher stands between. Some minutes before the time limit Slurm asks the tasks to stop, they save, and
the job queues itself again; so it does after a machine died. A run that fails in its first minutes has a
mistake in it and is not tried again. Nothing is submitted here: the script is read first."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from stablelm.config import InputError, RunConfig
from stablelm.config.slurm import TrainingJob
from stablelm.planning.layout import layout_of

_SCRIPT = """#!/bin/bash
# {title}
# {shape}
# Written by: {command}
# Submit it with sbatch where that path is right; it queues itself again until the run is done.
{options}
set -euo pipefail
{setup}export OMP_NUM_THREADS={threads}
export PYTHONUNBUFFERED=1
# AWS with EFA (libfabric and aws-ofi-nccl installed): take the # off.
#export FI_PROVIDER=efa FI_EFA_USE_DEVICE_RDMA=1 FI_EFA_FORK_SAFE=1
# InfiniBand or Ethernet: name the interface where NCCL does not find it.
#export NCCL_SOCKET_IFNAME=ib0
#export NCCL_DEBUG=INFO

# Flat: weights and moments are shared out over all {world} GPUs. Hybrid: inside each machine, with a copy on
# every machine, so that only gradients cross the network (docs/parallelism.md).
mesh=()
#mesh=(--set parallel.replicate={nodes} --set parallel.shard={shard})
# A copy of a checkpoint in a bucket every 10,000 steps, in the background (docs/robustness.md).
bucket=()
#bucket=(--set checkpoint.copy_every=10000 --set checkpoint.copy_to=s3://BUCKET/{name})

if srun --kill-on-bad-exit=1 {program} train {arguments} --resume \
  ${{mesh[@]+"${{mesh[@]}}"}} ${{bucket[@]+"${{bucket[@]}}"}}; then
  exit 0
fi
if (( SECONDS < {least} )); then
  echo "{name}: failed within {least} s; not queued again. The log above says why." >&2
  exit 1
fi
if (( ${{SLURM_RESTART_COUNT:-0}} >= {restarts} )); then
  echo "{name}: was queued {restarts} times already; look at the log before it goes on." >&2
  exit 1
fi
exec scontrol requeue "$SLURM_JOB_ID"
"""


def slurm_script(
    path: str | Path, config: RunConfig, job: TrainingJob, overrides: Sequence[str] = (), command: str = ""
) -> str:
    """The text of the script; `path` and `overrides` are what `config` was read from, `command` is told in
    the heading. `InputError` where the run does not fit that many GPUs."""
    world = job.nodes * job.gpus_per_node
    layout = layout_of(config, world)
    for text in (str(path), command, *overrides):
        if not text.isprintable():
            raise InputError(f"{text!r}: a line break cannot be given to Slurm. Choose another name.")
    name = Path(config.out).name or "stablelm"
    flags = [
        f"--job-name={shlex.quote(name)}", f"--nodes={job.nodes}", f"--ntasks-per-node={job.gpus_per_node}",
        f"--gpus-per-node={job.gpus_per_node}", f"--cpus-per-task={job.cpus_per_task}", "--exclusive",
        f"--time={job.time}", f"--signal=TERM@{job.notice}", "--requeue", "--open-mode=append",
        f"--output={shlex.quote(name)}-%j.log",
    ]  # fmt: skip
    for key in ("partition", "account", "qos", "constraint"):
        if value := getattr(job, key):
            flags.append(f"--{key}={value}")
    words = [shlex.quote(str(path))]
    for override in overrides:
        words += ["--set", shlex.quote(override)]
    passes = f"{layout.micro_batches:,} × {layout.micro_sequences}"
    tensor = f", tensor parallel over {layout.tensor}" if layout.tensor > 1 else ""
    return _SCRIPT.format(
        title=f"{path}: {job.nodes:,} machines with {job.gpus_per_node} GPUs, one task each.",
        shape=f"{config.batch.sequences:,} sequences a step, on each GPU {passes}{tensor}.",
        command=command or "stablelm launch slurm", name=name, world=f"{world:,}",
        options="\n".join(f"#SBATCH {flag}" for flag in [*flags, *job.options]),
        setup="".join(f"{line}\n" for line in job.setup), threads=job.cpus_per_task, nodes=job.nodes,
        shard=max(1, job.gpus_per_node // layout.tensor), program=job.command or "stablelm",
        arguments=" ".join(words), least=job.least, restarts=job.restarts,
    )  # fmt: skip
