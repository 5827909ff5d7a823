"""Ray: the bytes of one process; errors, lost workers and unfit nodes told in one message; Ctrl-C.

Two nodes of one core each run on this machine; the driver joins them as it would join a cluster."""

import _thread
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.config.recipe import load_recipe
from stablelm.data.execution import Task, finished
from stablelm.data.executors import ray as executor
from stablelm.data.executors.ray import Ray
from stablelm.data.preparation import prepare
from stablelm.storage import directory_lock

ray = pytest.importorskip("ray", reason='pip install "stablelm[ray]"')


@pytest.fixture(scope="module")
def cluster(root):
    """The address of two nodes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(root))
        patch.delenv("RAY_ADDRESS", raising=False)
        nodes = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=nodes)
        made.add_node(num_cpus=1, object_store_memory=100 << 20)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield made.address
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def on_ray(cluster):
    """`on_ray()` → an executor on the two nodes, which stay joined between tests."""
    made = []

    def make(**more):
        made.append(Ray(address=cluster, small=0, **more))
        if not ray.is_initialized():
            executor._start(executor._import(), cluster, 0)
        return made[-1]

    yield make
    for one in made:
        one.close()


@dataclass(frozen=True)
class Toy:
    """A stage whose tasks do what their argument says."""

    name: str = "toy"
    version: int = 1
    by_content: bool = False

    def tasks(self, work):
        raise AssertionError("listed by the tests")

    def run(self, work: Path, task: Task, out: Path) -> dict:
        what = task.arguments["what"]
        with open(work / f"{task.name}.log", "a") as log:
            log.write(f"{os.getpid()} {os.environ['RAYON_NUM_THREADS']} {os.getcwd()}\n")
        first = len((work / f"{task.name}.log").read_text().splitlines()) == 1
        if what == "die" or (what == "die once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "input error":
            raise InputError("data.jsonl, line 3: broken JSON. Correct it.")
        if what == "bug":
            return {}["absent"]
        if what == "odd error":
            raise type("Odd", (Exception,), {"__reduce__": None})("cannot travel")
        if what == "sleep":
            time.sleep(60)
        (out / "made").write_text(task.name)
        return {"pid": os.getpid()}


def tasks(*what):
    return [Task(f"t{number}", {"what": word}, size=1) for number, word in enumerate(what)]


def run(one, work, listed):
    told = []
    work.mkdir(exist_ok=True)
    one.map(Toy(), listed, work, told.append)
    return told


def logs(work):
    return {path.stem: path.read_text().splitlines() for path in sorted(work.glob("*.log"))}


def test_two_nodes_make_the_same_bytes_as_one_process(expected, recipe_in, digest, on_ray):
    recipe = load_recipe(recipe_in("far"))
    lines = []
    assert digest(prepare(recipe, executor=on_ray(), progress=lines.append)) == expected
    assert any(line.startswith("tokenize: ") and " tasks in " in line for line in lines)
    assert not list((Path(recipe.out + ".work") / ".ray").glob("run-*")), "the token is taken away at the end"


def test_nodes_work_on_one_thread_in_the_driver_s_folder(on_ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = tasks(*["work"] * 12)
    told = run(on_ray(), Path("relative.work"), listed)
    assert sorted(task.name for task in told) == sorted(task.name for task in listed)
    pids = {finished(tmp_path / "relative.work", Toy(), task).result["pid"] for task in listed}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids  # Ray may give a quick node everything
    for lines in logs(tmp_path / "relative.work").values():
        assert [line.split()[1:] for line in lines] == [["1", str(tmp_path)]]


def test_a_lost_worker_s_task_is_done_once_more(on_ray, tmp_path):
    listed = tasks("work", "die once", "work", "work")
    assert len(run(on_ray(), tmp_path / "w", listed)) == 4
    assert {name: len(lines) for name, lines in logs(tmp_path / "w").items()} == {
        "t0": 1, "t1": 2, "t2": 1, "t3": 1,
    }  # fmt: skip


def test_a_task_that_loses_every_worker_is_one_error(on_ray, tmp_path):
    with pytest.raises(RunError, match=r"toy/t1: the Ray worker that did it was lost 2 times .* run again"):
        run(on_ray(), tmp_path / "w", tasks("work", "die", "work"))
    assert len(logs(tmp_path / "w")["t1"]) == 2
    assert not (tmp_path / "w/toy/t1").exists()


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [("input error", InputError, "^data.jsonl, line 3: broken JSON"), ("bug", KeyError, "absent"),
     ("odd error", RuntimeError, "Odd: cannot travel")],
)  # fmt: skip
def test_an_error_of_a_task_comes_home_and_ends_the_others(on_ray, tmp_path, what, kind, says):
    began = time.monotonic()
    with pytest.raises(kind, match=says) as caught:
        run(on_ray(), tmp_path / "w", tasks("sleep", what, "sleep"))
    assert time.monotonic() - began < 20
    assert (kind is InputError) or "in run_task" in str(caught.value.__cause__)
    with directory_lock(tmp_path / "w/.ray"):
        assert not list((tmp_path / "w").glob("toy/t[02]")), "nothing writes any more"


def test_ctrl_c_ends_the_tasks(on_ray, tmp_path):
    one = on_ray()
    run(one, tmp_path / "w", tasks("work", "work"))  # joined, so that Ctrl-C comes while tasks run
    threading.Thread(target=interrupt_when, args=(lambda: "t7" in logs(tmp_path / "w"),), daemon=True).start()
    listed = [Task("t7", {"what": "sleep"}, size=1), Task("t8", {"what": "sleep"}, size=1)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(one, tmp_path / "w", listed)
    finally:
        signal.signal(signal.SIGINT, before)
    with directory_lock(tmp_path / "w/.ray"):
        assert {path.name for path in (tmp_path / "w/toy").iterdir() if ".tmp-" not in path.name} == {
            "t0",
            "t1",
        }


def interrupt_when(condition):
    while not condition():
        time.sleep(0.02)
    _thread.interrupt_main()


def test_at_most_so_many_at_a_time(on_ray, tmp_path):
    one = on_ray(workers=1)
    run(one, tmp_path / "w", tasks(*["work"] * 4))
    assert one._limit() == 1
    every = on_ray()
    run(every, tmp_path / "w", tasks(*["work"] * 4))
    assert every._limit() == 4, "two a core"


def test_a_work_directory_that_a_node_does_not_see(on_ray, tmp_path, monkeypatch):
    """As a folder on this node's own disk looks from the others: the token is not there."""
    take_over = executor._take_over

    def unseen(work):
        token = take_over(work)
        token.unlink()
        return token

    monkeypatch.setattr(executor, "_take_over", unseen)
    with pytest.raises(
        InputError, match=r"Ray node \S+ \([\d.]+\): does not see the work directory .*/w .* share"
    ):
        run(on_ray(), tmp_path / "w", tasks("work", "work"))
    assert logs(tmp_path / "w") == {}


def test_a_node_that_joins_later_and_does_not_see_it(on_ray, tmp_path):
    one = on_ray()
    run(one, tmp_path / "w", tasks("work", "work"))
    one._token.unlink()
    with pytest.raises(InputError, match="does not see the work directory"):
        one.map(Toy(), [Task(f"u{n}", {"what": "work"}, size=1) for n in range(2)], tmp_path / "w", print)


def test_nodes_with_other_code_are_refused(on_ray, tmp_path, monkeypatch):
    real = executor.versions()
    monkeypatch.setattr(executor, "versions", lambda: {**real, "tokenizers": "0.1"})
    with pytest.raises(
        InputError, match=rf"has tokenizers {real['tokenizers']}, here 0.1\. Install the same"
    ):
        run(on_ray(), tmp_path / "w", tasks("work", "work"))


def test_an_earlier_run_s_workers_are_waited_for(on_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "_LEAVE_SECONDS", 0.5)
    (tmp_path / "w").mkdir()
    with (
        directory_lock(tmp_path / "w/.ray", shared=True),
        pytest.raises(InputError, match="in use by process"),
    ):
        run(on_ray(), tmp_path / "w", tasks("work", "work"))
    assert len(run(on_ray(), tmp_path / "w", tasks("work", "work"))) == 2


def test_what_an_earlier_run_left_in_the_queue_does_nothing(tmp_path, monkeypatch):
    """A task begun after its run's token is gone (its driver was killed, another took over)."""
    monkeypatch.setattr(executor, "_unfit", lambda token, folder: "")
    old, new = executor._take_over(tmp_path / "w"), executor._take_over(tmp_path / "w")
    assert new.exists() and not old.exists()
    monkeypatch.setattr(executor, "_ONE_THREAD", {})  # this process keeps its threads
    error, _ = executor._serve((Toy(), tmp_path / "w", old, str(tmp_path)), tasks("work")[0])
    assert isinstance(error, InputError) and "another run" in str(error)
    assert not (tmp_path / "w/toy").exists()


def test_small_stages_start_no_cluster(tmp_path):
    one = Ray(address="192.0.2.1:1")
    monkey = dict(os.environ)
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        assert len(run(one, tmp_path, tasks("work", "work"))) == 2
    finally:
        os.environ.clear()
        os.environ.update(monkey)
    one.close()
    assert json.loads((tmp_path / "toy/t0/done.json").read_text())["result"]["pid"] == os.getpid()


def test_a_ray_client_is_refused():
    with pytest.raises(InputError, match=r"ray://head:10001: .* on a node of the cluster"):
        Ray(address="ray://head:10001")


def test_without_ray_the_install_line_is_printed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "stablelm\[ray\]"'):
        executor._import()


def test_a_cluster_that_is_not_there(monkeypatch):
    class Nobody:
        def init(self, **keys):
            raise ConnectionError("Could not find any running Ray instance.")

    with pytest.raises(InputError, match=r"Ray cluster auto: cannot be joined \(Could not .*ray start"):
        executor._start(Nobody(), "auto", 0)
