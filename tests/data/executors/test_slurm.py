"""Slurm scripts: what they ask for, and that a scheduler which does what Slurm promises gets the same bytes.

The scheduler is ours: `sbatch` only queues, as the real one does; `run_queue` then runs each array, two jobs
at a time in an order of its own, from a copy of the script, in another folder, with Slurm's variables."""

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from stablelm.config import InputError
from stablelm.config.recipe import load_recipe
from stablelm.config.schema import validate
from stablelm.config.slurm import SlurmConfig
from stablelm.data import Dataset
from stablelm.data.executors.slurm import write_jobs

SBATCH = """#!/bin/bash
script=${@: -1}
if [ -n "$REFUSE" ] && [[ $script == *"$REFUSE"* ]]; then
  echo "sbatch: error: Batch job submission failed" >&2
  exit 1
fi
id=$((100 + $(ls "$QUEUE" | wc -l)))
printf '%s\\n' "$@" > "$QUEUE/$id"
cp "$script" "$SPOOL/$id.sh"
echo "$id;cluster"
"""
SQUEUE = """#!/bin/bash
for word in "$@"; do [[ $word == --name=* ]] && names=${word#--name=}; done
for job in $(ls "$QUEUE"); do
  name=$(sed -n 's/^#SBATCH --job-name=//p' "$SPOOL/$job.sh")
  [[ ,$names, == *,$name,* ]] && echo "$job cpu $name"
done
exit 0
"""
SCANCEL = """#!/bin/bash
rm "$QUEUE/$1"
"""
COMMAND = """#!{python}
import sys
from stablelm.cli.main import main
from stablelm.data.stages import reading
reading.PIECE_BYTES, reading.SHARD_BYTES = 1 << 15, 1 << 14
if sys.argv[1:3] == ["data", "run"] and "{fail}" in sys.argv:
    sys.exit("broken on purpose")
main()
"""


class Cluster:
    """Queue, spool and commands of a Slurm that runs what it is told, when it is told."""

    def __init__(self, folder, root):
        self.queue, self.spool, self.bin = folder / "queue", folder / "spool", folder / "bin"
        for path in (self.queue, self.spool, self.bin):
            path.mkdir(parents=True)
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL}.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "QUEUE": str(self.queue),
            "SPOOL": str(self.spool),
            "PYTHONPATH": str(root),
            "REFUSE": "",
        }

    def submit(self, script, **more):
        """Runs submit.sh from another folder."""
        environment = {**self.environment, **more}
        return subprocess.run([script.resolve()], cwd="/", env=environment, capture_output=True, text=True)

    def jobs(self):
        """Job number → the words of its sbatch command, in order of submission."""
        return {int(path.name): path.read_text().splitlines() for path in sorted(self.queue.iterdir())}

    def run_queue(self, seed=0):
        """Runs what is queued; job number → exit codes, or None where the job before it did not end well."""
        ended = {}
        for job, words in self.jobs().items():
            script = (self.spool / f"{job}.sh").read_text()
            after = [word.split(":")[1] for word in words if word.startswith("--dependency=afterok:")]
            log = next(word.split("=", 1)[1] for word in words if word.startswith("--output="))
            array = re.search(r"^#SBATCH --array=0-(\d+)", script, re.M)
            tasks = list(range(int(array[1]) + 1)) if array else [None]
            random.Random(seed).shuffle(tasks)
            if any(ended[int(number)] is None or any(ended[int(number)]) for number in after):
                ended[job] = None
                continue
            with ThreadPoolExecutor(2) as pool:
                ended[job] = list(pool.map(lambda task: self._run(job, task, log), tasks))  # noqa: B023
        for job in ended:
            (self.queue / str(job)).unlink()
        return ended

    def _run(self, job, task, log):
        variables = {"SLURM_JOB_ID": str(job)}
        if task is not None:
            variables |= {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(task)}
        names = {"%%": "%", "%A": str(job), "%a": str(task), "%j": str(job)}
        path = re.sub("%[%Aaj]", lambda found: names[found[0]], log)
        with open(path, "ab") as output:
            command = ["/bin/bash", str(self.spool / f"{job}.sh")]
            environment = {**self.environment, **variables}
            return subprocess.run(command, cwd="/", env=environment, stdout=output, stderr=output).returncode


@pytest.fixture
def cluster(tmp_path, root):
    return Cluster(tmp_path / "slurm cluster", root)


@pytest.fixture
def command(tmp_path):
    """`command(fail=STAGE)` → an executable `stablelm` with small tasks, which fails at a stage."""

    def write(fail="nothing"):
        path = tmp_path / "stablelm"
        path.write_text(COMMAND.format(python=sys.executable, fail=fail))
        path.chmod(0o755)
        return str(path)

    return write


def options(**values):
    return validate(SlurmConfig, values, "slurm")


@pytest.mark.parametrize(("jobs", "cpus"), [(3, 1), (1, 2)])
def test_arrays_make_the_same_bytes_as_one_process(
    expected, recipe_in, digest, cluster, command, tmp_path, jobs, cpus
):
    recipe = load_recipe(recipe_in("it's 100% there"))
    submit = write_jobs(recipe, options(jobs=jobs, cpus=cpus, command=command()))
    assert cluster.jobs() == {}, "nothing is submitted before submit.sh is run"
    said = cluster.submit(submit)
    assert (said.returncode, said.stderr) == (0, "")
    ended = cluster.run_queue(seed=jobs)
    logs = {path.name: path.read_text() for path in (submit.parent.parent / "logs").iterdir()}
    assert all(codes is not None and not any(codes) for codes in ended.values()), logs
    assert [len(codes) for codes in ended.values()] == [min(jobs, 2), *[jobs] * (len(ended) - 2), 1]
    assert digest(recipe.out) == expected
    Dataset(recipe.out).verify()
    assert {name.split("-")[1] for name in logs if "publish" not in name} == {
        path.name.split("-")[1].removesuffix(".sbatch") for path in submit.parent.glob("*.sbatch")
    } - {"publish"}


def test_a_failed_stage_stops_the_later_ones_and_submitting_again_goes_on(
    expected, recipe_in, digest, cluster, command
):
    recipe = load_recipe(recipe_in("again"))
    submit = write_jobs(recipe, options(jobs=2, command=command(fail="tokenize")))
    assert cluster.submit(submit).returncode == 0
    ended = list(cluster.run_queue().values())
    assert ended[:3] == [[0, 0], [0, 0], [1, 1]] and set(map(str, ended[3:])) == {"None"}
    work = submit.parent.parent
    assert not os.path.exists(recipe.out)
    stamps = {path: path.stat().st_mtime_ns for path in work.glob("read/*/done.json")}
    assert len(stamps) > 4
    command()
    assert cluster.submit(submit).returncode == 0
    assert not any(any(codes) for codes in cluster.run_queue().values())
    assert digest(recipe.out) == expected
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "what was read was not read again"


def test_each_stage_waits_for_the_one_before(recipe_in, cluster):
    said = cluster.submit(write_jobs(load_recipe(recipe_in("out")), options()))
    jobs = list(cluster.jobs().items())
    for (before, _), (_, words) in itertools.pairwise(jobs):
        assert f"--dependency=afterok:{before}" in words
        assert "--kill-on-invalid-dep=yes" in words
    assert not any(word.startswith("--dependency") for word in jobs[0][1])
    names = [words[-1] for _, words in jobs]
    assert names[:2] == ["1-plan.sbatch", "2-read.sbatch"] and names[-1].endswith("-publish.sbatch")
    assert said.stdout.splitlines() == [
        f"{name}: job {job}" for name, (job, _) in zip(names, jobs, strict=True)
    ]


def test_what_the_scripts_ask_for(recipe_in, tmp_path):
    recipe = load_recipe(recipe_in("out"))
    about = {
        "jobs": 40,
        "concurrent": 8,
        "cpus": 4,
        "memory_per_cpu": "6G",
        "time": "1-00:00:00",
        "partition": "cpu",
        "account": "project-7",
        "qos": "low",
        "constraint": "zen4",
        "options": ["--exclude=node[3-5]"],
        "setup": ["module load python/3.12", "source 'my venv/bin/activate'"],
    }
    folder = write_jobs(recipe, options(**about), folder=tmp_path / "a 'b'").parent
    script = (folder / "2-read.sbatch").read_text()
    asked = [line.split()[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    assert asked[0].startswith("--job-name=stablelm-") and asked[0].endswith("-read")
    assert asked[1:] == [
        "--array=0-39%8",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=4",
        "--mem-per-cpu=6G",
        "--time=1-00:00:00",
        "--partition=cpu",
        "--account=project-7",
        "--qos=low",
        "--constraint=zen4",
        "--requeue",
        "--open-mode=append",
        "--exclude=node[3-5]",
    ]
    assert script.index("#SBATCH --exclude") < script.index("set -eo"), "sbatch stops at the first command"
    assert f"{sys.executable} -m stablelm data run " in script and '--part "$part/160"' in script
    assert script.index("\nmodule load python/3.12\nsource 'my venv/bin/activate'\n") < script.index(
        "data run"
    )
    plan = (folder / "1-plan.sbatch").read_text()
    assert "--array=0-1%8" in plan, "one job a source"
    assert (folder / "submit.sh").stat().st_mode & 0o111
    for path in folder.glob("*s*"):
        if path.suffix in (".sh", ".sbatch"):
            assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_the_recipe_is_kept_as_it_was_checked(recipe_in, tmp_path):
    path = recipe_in("out")
    recipe = load_recipe(path, ["seed=9"])
    folder = write_jobs(recipe, options(cpus=3)).parent
    path.write_text("nonsense")
    kept = load_recipe(folder / "recipe.yml")
    assert kept == recipe.model_copy(update={"workers": 3})


def test_submitting_twice_is_refused(recipe_in, cluster):
    submit = write_jobs(load_recipe(recipe_in("out")), options())
    assert cluster.submit(submit).returncode == 0
    before = cluster.jobs()
    said = cluster.submit(submit)
    assert (
        said.returncode == 2
        and "queued or running" in said.stderr
        and "scancel --name=stablelm-" in said.stderr
    )
    assert cluster.jobs() == before


def test_submitted_whole_or_not_at_all(recipe_in, cluster):
    said = cluster.submit(write_jobs(load_recipe(recipe_in("out")), options()), REFUSE="tokenize")
    assert said.returncode == 1 and said.stderr.count("already queued is cancelled") == 1
    assert cluster.jobs() == {}


def test_without_slurm_submitting_says_so(recipe_in, tmp_path):
    submit = write_jobs(load_recipe(recipe_in("out")), options())
    (tmp_path / "few").mkdir()
    for name in ("bash", "dirname"):
        (tmp_path / "few" / name).symlink_to(shutil.which(name))
    said = subprocess.run([submit], env={"PATH": str(tmp_path / "few")}, capture_output=True, text=True)
    assert said.returncode == 2 and "login node" in said.stderr


def test_wrong_sources_are_told_before_anything_is_queued(recipe_in, tmp_path):
    gone = [{"name": "a", "paths": [str(tmp_path / "gone" / "*.jsonl")]}]
    with pytest.raises(InputError, match="gone"):
        write_jobs(load_recipe(recipe_in("out", sources=gone)), options())
    assert not (tmp_path / "out.work" / "slurm").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"partition": "a b"},
        {"account": "x\n#SBATCH --uid=0"},
        {"qos": "'"},
        {"time": "soon"},
        {"jobs": 0},
        {"memory_per_cpu": "4 GB"},
        {"options": ["exclude=node"]},
        {"options": ["--a --b"]},
        {"setup": ["a\nb"]},
        {"constraint": "a#b"},
        {"partitions": "cpu"},
    ],
)
def test_values_that_sbatch_would_misread_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        options(**values)
    assert json.loads(SlurmConfig().model_dump_json())["options"] == []
