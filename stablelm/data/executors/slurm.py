"""Stages as arrays of Slurm jobs: scripts are written, and nothing is submitted until `submit.sh` is run.

    WORK/slurm/submit.sh         submits all of it: each stage starts when the one before ended well
    WORK/slurm/1-plan.sbatch …   an array a stage; process k of N does tasks k, k + N, …
    WORK/slurm/N-publish.sbatch  the end: everything is found done, checked, and moved to OUT
    WORK/slurm/recipe.yml        the recipe as it was checked, with `--set`; later edits change no queued job
    WORK/logs/                   what the jobs say

How many tasks a stage has is known when the stage before it is done, so arrays are as wide as `slurm.jobs`
says and jobs without a task end at once. A job that failed or ran out of time leaves its finished tasks:
`submit.sh` again goes on. It submits all or nothing, and refuses while jobs of the same work are queued.
Rejected: submitting from here (a person looks first), one job that starts the others (dies with its node), a
job a task (schedulers dislike millions), srun inside (each process is independent)."""

import hashlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from stablelm.config import InputError
from stablelm.config.recipe import DataRecipe
from stablelm.config.slurm import SlurmConfig
from stablelm.data.execution import Work
from stablelm.data.preparation import Pipeline, work_directory
from stablelm.data.stages.tokenizing import keep_tokenizer, tokenizer_of
from stablelm.storage import atomic_directory, directory_lock

_ONE_THREAD = "TOKENIZERS_PARALLELISM=false RAYON_NUM_THREADS=1 NUMBA_NUM_THREADS=1 OMP_NUM_THREADS=1"

_JOB = """\
#!/bin/bash
# Stage {stage} of {out}, {what}.
{options}
set -eo pipefail
cd -- {folder}  # relative paths of the recipe start here
export {one_thread}
{setup}{work}"""

_ONE_PROCESS = """\
exec {command} data run {recipe} --stage {stage} --part "$SLURM_ARRAY_TASK_ID/{parts}"
"""

_PROCESSES = """\
status=0
processes=()
for ((core = 0; core < {cpus}; core++)); do
  part=$((SLURM_ARRAY_TASK_ID * {cpus} + core))
  {command} data run {recipe} --stage {stage} --part "$part/{parts}" &
  processes+=("$!")
done
for process in "${{processes[@]}}"; do
  wait "$process" || status=1  # the others go on: what they finish is kept
done
exit "$status"
"""

_PUBLISH = """\
exec {command} data prepare {recipe}
"""

_SUBMIT = """\
#!/bin/bash
# Submits the preparation of {out}: {count} stages, one after the other.
# Run it again when jobs failed or ran out of time: what was finished is not done again.
set -euo pipefail
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"
if ! command -v sbatch >/dev/null; then
  echo "submit.sh: there is no sbatch here. Run this on a login node of the Slurm cluster." >&2
  exit 2
fi
names={names}
if command -v squeue >/dev/null && [ -n "$(squeue --noheader --user="$(id -un)" --name="$names")" ]; then
  echo "submit.sh: its jobs are queued or running. Wait for them, or: scancel --name=$names" >&2
  exit 2
fi
mkdir -p ../logs
logs=$(cd ../logs && pwd)
logs=${{logs//%/%%}}
submitted="" last=""
undo() {{
  echo "submit.sh: submitting failed; what was already queued is cancelled." >&2
  for job in $submitted; do scancel "$job" || true; done
}}
trap undo EXIT
submit() {{  # script, pattern of its logs
  local answer
  answer=$(sbatch --parsable ${{last:+"--dependency=afterok:$last"}} ${{last:+--kill-on-invalid-dep=yes}} \
    --output="$logs/$2" "$1")
  last=${{answer%%;*}}  # JOB or JOB;CLUSTER
  submitted="$submitted $last"
  echo "$1: job $last"
}}
{submissions}"""


def write_jobs(recipe: DataRecipe, options: SlurmConfig, *, folder: str | Path = ".") -> Path:
    """Writes the scripts that prepare `recipe`, returns submit.sh; earlier ones are replaced, logs kept.

    `folder` is where relative paths start. `InputError`, before anything is queued, for sources or a
    tokenizer that cannot be read, or while the work directory is in use."""
    folder = Path(os.path.abspath(folder))
    tokenizer = tokenizer_of(recipe)
    work = Work(work_directory(recipe))
    pipeline = Pipeline.of(recipe, tokenizer, f"tokenizers/{tokenizer.sha256[:16]}")
    sources = len(work.tasks(pipeline.plan))  # looks for the files: a wrong path is told now
    stages = [stage.name for stage in pipeline.stages]
    place = Path(os.path.abspath(work.path)) / "slurm"
    if "\n" in f"{place}{folder}":
        raise InputError(f"{str(place)!r}: a line break in a path cannot be given to Slurm. Choose another.")
    with directory_lock(work.path):
        keep_tokenizer(tokenizer, work.path)
        with atomic_directory(place, replace=True) as aside:
            values = {**recipe.model_dump(mode="json", exclude_defaults=True), "workers": options.cpus}
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
            (aside / "recipe.yml").write_text(text, encoding="utf-8")
            scripts = []
            for number, stage in enumerate([*stages, None], 1):
                script = f"{number}-{stage or 'publish'}.sbatch"
                jobs = min(options.jobs, sources) if stage == pipeline.plan.name else options.jobs
                job = _job(recipe.out, stage, jobs, options, folder, place)
                (aside / script).write_text(job, encoding="utf-8")
                scripts.append((script, f"{script.removesuffix('.sbatch')}-{'%A_%a' if stage else '%j'}.log"))
            submit = aside / "submit.sh"
            submit.write_text(_submit(recipe.out, stages, scripts, place), encoding="utf-8")
            submit.chmod(0o755)
    return work_directory(recipe) / "slurm" / "submit.sh"


def _job(out: str, stage: str | None, jobs: int, options: SlurmConfig, folder: Path, place: Path) -> str:
    """The script of a stage, or of the end."""
    parts = jobs * options.cpus
    template = _PUBLISH if stage is None else _ONE_PROCESS if options.cpus == 1 else _PROCESSES
    default = f"{shlex.quote(sys.executable)} -m stablelm"
    work = template.format(
        command=options.command or default, recipe=shlex.quote(str(place / "recipe.yml")), stage=stage,
        parts=parts, cpus=options.cpus,
    )  # fmt: skip
    flags = [f"--job-name={_name(place, stage)}"]
    if stage is not None:
        flags.append(f"--array=0-{jobs - 1}" + (f"%{options.concurrent}" if options.concurrent else ""))
    flags += ["--nodes=1", "--ntasks=1", f"--cpus-per-task={options.cpus}"]
    flags += [f"--mem-per-cpu={options.memory_per_cpu}", f"--time={options.time}"]
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(options, key):
            flags.append(f"--{key}={getattr(options, key)}")
    flags += ["--requeue", "--open-mode=append", *options.options]
    what = "moved to its place" if stage is None else f"in {parts:,} part{'s' if parts > 1 else ''}"
    return _JOB.format(
        stage=stage or "publish", out=_comment(out), what=what,
        options="\n".join(f"#SBATCH {flag}" for flag in flags), folder=shlex.quote(str(folder)),
        one_thread=_ONE_THREAD, setup="".join(f"{line}\n" for line in options.setup), work=work,
    )  # fmt: skip


def _submit(out: str, stages: Sequence[str], scripts: Sequence[tuple[str, str]], place: Path) -> str:
    names = ",".join(_name(place, stage) for stage in [*stages, None])
    lines = "".join(f"submit {shlex.quote(script)} {shlex.quote(log)}\n" for script, log in scripts)
    return _SUBMIT.format(
        out=_comment(out), count=len(scripts), names=shlex.quote(names), submissions=lines + "trap - EXIT\n"
    )


def _name(place: Path, stage: str | None) -> str:
    """Of a job: the same for the same work directory, so that a second submission can see the first."""
    return f"stablelm-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}-{stage or 'publish'}"


def _comment(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
