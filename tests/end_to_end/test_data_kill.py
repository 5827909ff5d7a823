"""`kill -9` of a preparation at moments nobody chose, then resumed: the bytes of a run that nobody disturbed.

The recipe has every step: filters, equal and nearly equal documents and repeated lines across two sources,
evaluation sets. The driver is killed ten times on the local pool and three times on Ray (ten times in
tests/oracle), whose cluster goes on without it, so what it had handed out may still be running when the next
one begins; and workers are killed while the driver goes on. Each run says which tasks it did; a moment is a
number of tasks and a delay after them, drawn so that the kills are spread over all stages."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from stablelm.data import Dataset
from stablelm.tokenizer import train_tokenizer

WORDS = ["stone", "river", "light", "over", "under", "small", "the", "a", "runs", "sleeps"]
MENU = "home, about the river, about the stone, contact\n"
ITEM = "which stone sleeps under the small river while the light runs over a small stone"
RUN = """
import sys
from stablelm.config.recipe import load_recipe
from stablelm.data.executors import local
from stablelm.data.preparation import prepare
from stablelm.data.stages import reading

class Told:
    def message(self, text): print("message", text, flush=True)
    def start(self, stage, tasks, size): self.stage = stage
    def advance(self, size): print("did", self.stage, flush=True)
    def finish(self): pass

if __name__ == "__main__":
    reading.PIECE_BYTES, reading.SHARD_BYTES, local.SMALL = 1 << 13, 1 << 12, 0
    executor = local.Local(int(sys.argv[2]))
    if len(sys.argv) > 3:
        from stablelm.data.executors.ray import Ray
        executor = Ray(address=sys.argv[3], small=0)
    prepare(load_recipe(sys.argv[1]), progress=Told(), executor=executor)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`world(out)` writes a recipe for the same sources; `world.whole` is what one process makes of it."""
    root = tmp_path_factory.mktemp("kill")
    draw, texts = random.Random(1), []
    for name in ("web", "books"):
        (root / name).mkdir()
        for number in range(3):
            for row in range(60):
                text = " ".join(draw.choices(WORDS, k=draw.randint(5, 150)))
                if name == "books" and row % 3:  # equal to a page but for case, or for a word
                    text = draw.choice(texts)
                    text = text.upper() if row % 3 == 1 else text.replace(" river ", " water ", 1)
                else:
                    texts.append(text)
                text = f"{MENU if row % 10 == 5 else ''}{text}{f' {ITEM} ' if row % 20 == 0 else ''}"
                text += f" {row}@river.org" if row % 7 == 0 else ""
                with open(root / name / f"{number}.jsonl", "a") as file:
                    file.write(json.dumps({"id": f"{number}#{row}", "text": text}) + "\n")
    (root / "test.jsonl").write_text(json.dumps({"question": ITEM}) + "\n")
    (root / "words.txt").write_text("sleeps sleeps sleeps\n")
    train_tokenizer([" ".join(WORDS)] * 20, 290, root / "tokenizer")
    (root / "run.py").write_text(RUN)

    def recipe(out):
        values = {
            "out": str(root / out), "tokenizer": str(root / "tokenizer"), "held_out": 0.3,
            "shard_tokens": 8000,
            "sources": [
                {"name": name, "paths": [str(root / name)],
                 "filters": {"pii": True, "word_blocklist": {"words": [str(root / "words.txt")]}}}
                for name in ("web", "books")
            ],
            "deduplication": {"precedence": ["books"], "lines": {"max_documents": 4}},
            "decontamination": {"sets": {"river": {"path": str(root / "test.jsonl")}}},
        }  # fmt: skip
        (root / f"{out}.yml").write_text(yaml.safe_dump(values))
        return root / f"{out}.yml"

    return recipe


@pytest.fixture(scope="module")
def whole(world):
    """What one process makes when nobody disturbs it: its files, and how many tasks it did."""
    recipe = world("whole")
    said = subprocess.run(command(recipe, 1), check=True, capture_output=True, text=True).stdout
    manifest = json.loads((recipe.with_suffix("") / "manifest.json").read_text())
    reasons = {reason for about in manifest["sources"].values() for reason in about["dropped"]}
    assert {"exact duplicate", "near duplicate", "decontamination: river"} < reasons, reasons
    assert any(reason.startswith("word_blocklist") or "word" in reason for reason in reasons), reasons
    report = json.loads((recipe.with_suffix("") / "report.json").read_text())
    between = [(pair["kept"], pair["dropped"]) for pair in report["repetitions"]["near"]["between"]]
    assert ("books", "web") in between, "across sources"
    assert report["repetitions"]["lines"]["common"]
    return files(recipe), said.count("did ")


@pytest.fixture(scope="module")
def cluster(root):
    """The address of a Ray cluster of two nodes that outlives its drivers."""
    pytest.importorskip("ray", reason='pip install "stablelm[ray]"')
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(root))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
        yield made.address
        made.shutdown()


def command(recipe, workers, *address):
    return [sys.executable, str(recipe.parent / "run.py"), str(recipe), str(workers), *address]


def files(recipe):
    """Every file of OUT with its hash."""
    out = recipe.with_suffix("")
    Dataset(out).verify()
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def start(recipe, *more):
    return subprocess.Popen(
        command(recipe, 2, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def killed_at(process, tasks, delay):
    """Kills a run `delay` seconds after it did so many tasks; the tasks it told, None if it ended first."""
    done = 0
    while done < tasks and (line := process.stdout.readline()):
        done += line.startswith("did ")
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return None if process.returncode == 0 else done + rest.count("did ")


def resumed_to_the_end(recipe, *more):
    """Tasks done by a run that nobody kills."""
    last = subprocess.run(command(recipe, 2, *more), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    return last.stdout.count("did ")


def test_killed_at_ten_random_moments(world, whole):
    killed_and_resumed(world("killed-local"), whole, 10)


def test_killed_on_ray(world, whole, cluster):
    killed_and_resumed(world("killed-ray"), whole, 3, cluster)


def killed_and_resumed(recipe, whole, times, *address):
    """Kills a run and its resumptions so many times, then lets one end."""
    expected, all_tasks = whole
    moment, told = random.Random(times), []
    for _ in range(times):
        # Now and then none: a run that is killed while it starts, or looks at what is done.
        most = min(2 * all_tasks // (times + 3), all_tasks - sum(told) - 20)
        tasks = moment.choice([0, 1, moment.randint(1, most), moment.randint(1, most), most])
        told.append(killed_at(start(recipe, *address), tasks, moment.random() * 0.1))
        assert not recipe.with_suffix("").exists(), "nothing half done looks complete"
        assert told[-1] is not None, "the run ended before it was killed: it needs more tasks"
    last = resumed_to_the_end(recipe, *address)
    assert files(recipe) == expected
    assert 0 < last <= all_tasks - sum(told), "what was told as done is not done again"
    assert not list(recipe.parent.glob(f"{recipe.stem}.tmp-*"))
    assert resumed_to_the_end(recipe, *address) == 0


def test_a_killed_local_worker_is_one_error_and_the_next_run_goes_on(world, whole):
    recipe = world("lost-local")
    run = start(recipe)
    assert kill_workers(run, "multiprocessing.spawn", 1, run.pid) == 1
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1 and "a worker process was killed (signal 9) while doing" in errors
    assert 0 < resumed_to_the_end(recipe) < whole[1]
    assert files(recipe) == whole[0]


def test_killed_ray_workers_are_replaced_while_the_run_goes_on(world, whole, cluster):
    recipe = world("lost-ray")
    run = start(recipe, cluster)
    assert kill_workers(run, "ray::_serve", 3) == 3
    said, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    assert files(recipe) == whole[0]
    assert "did assemble" in said


def kill_workers(run, title, count, above=None):
    """Kills up to `count` worker processes below the process `above` (else this one, above Ray) while
    they work; eight tasks are done between two."""
    killed, done, next_at = 0, 0, 2
    while killed < count and (line := run.stdout.readline()):
        done += line.startswith("did ")
        if done < next_at:
            continue
        # Those that have no such process below them: forked workers are below their server, of the same name.
        below = [
            pid for pid in descendants(above or os.getpid()) if title in name_of(pid) and not descendants(pid)
        ]
        if below:
            os.kill(below[killed % len(below)], signal.SIGKILL)
            killed, next_at = killed + 1, done + 8
    return killed


def descendants(parent):
    """Processes below a process."""
    children = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            above = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        children.setdefault(above, []).append(int(entry.name))
    found, queue = [], [parent]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def name_of(pid):
    try:
        return (
            (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""
