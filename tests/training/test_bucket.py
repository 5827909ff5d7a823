"""Copies of finished checkpoints elsewhere: whole, or without a manifest; a refusal never stops the run."""

import threading
from pathlib import Path

import fsspec
import pytest

from stablelm.config import InputError
from stablelm.interchange import open_path
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import MANIFEST, read_manifest
from stablelm.training import bucket, train
from stablelm.training.bucket import Bucket
from tests.training.conftest import Recorder

QUIET = {"every": 1000, "windows": 1, "copying": 0, "cloze": 0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(bucket, "PAUSE", 0.01)
    yield
    fsspec.filesystem("memory").store.clear()
    assert not [t for t in threading.enumerate() if t.name == "bucket" and t.is_alive()]


def test_every_checkpoint_arrives_whole_though_few_stay_here(make_config, tmp_path):
    away = tmp_path / "away"
    options = {"every": 2, "keep": 1, "copy_to": f"file://{away}/run"}
    run = train(make_config(evaluation=QUIET, checkpoint=options), console=Recorder())
    assert [path.name for path in finished_checkpoints(run)] == ["step-000010"]
    copies = sorted((away / "run").iterdir())
    assert [path.name for path in copies] == [f"step-{n:06}" for n in (2, 4, 6, 8, 10)]
    for copy in copies:
        read_manifest(copy, hashes=True)  # every byte
    ours, theirs = open_path(run)[0].state_dict(), open_path(copies[-1])[0].state_dict()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_only_some_are_copied_and_a_resumed_run_copies_what_is_missing(make_config, tmp_path):
    options = {"every": 2, "copy_to": "memory://bucket/run", "copy_every": 4}
    config = make_config(evaluation=QUIET, checkpoint=options)
    run = train(config, console=Recorder())
    store = fsspec.filesystem("memory")
    assert [path.split("/")[-1] for path in sorted(store.ls("/bucket/run", detail=False))] == [
        "step-000004", "step-000008",
    ]  # fmt: skip
    newest = finished_checkpoints(run)[-1]
    store.pipe_file(f"/bucket/run/{newest.name}/{MANIFEST}", b"an older one's")
    store.pipe_file(f"/bucket/run/{newest.name}/model/stale", b"")
    copies = Bucket("memory://bucket/run")
    copies.offer(newest, 10)
    copies.close(wait=True)
    held = fsspec.filesystem("memory").cat_file(f"/bucket/run/{newest.name}/{MANIFEST}")
    assert held == (newest / MANIFEST).read_bytes() and not copies.messages and not copies.waiting


class Refusing:
    """A store that refuses some files, some times."""

    def __init__(self, system, refuse):
        self.system, self.refuse, self.asked = system, refuse, []

    def __getattr__(self, name):
        return getattr(self.system, name)

    def put_file(self, source, target):
        self.asked.append(target)
        if self.refuse(self.asked):
            raise PermissionError(f"403: {target}")
        self.system.put_file(source, target)


@pytest.mark.parametrize(("times", "arrives"), [(2, True), (10_000, False)])
def test_a_bucket_that_refuses_is_asked_again_then_told_and_the_run_goes_on(
    make_config, monkeypatch, times, arrives
):
    made = []

    def file_system(address):
        made.append(Refusing(fsspec.filesystem("memory"), lambda asked: len(asked) <= times))
        return made[-1], "/bucket/run"

    monkeypatch.setattr(bucket, "file_system", file_system)
    options = {"every": 5, "copy_to": "memory://bucket/run"}
    console = Recorder()
    run = train(make_config(evaluation=QUIET, checkpoint=options), console=console)
    assert len(finished_checkpoints(run)) == 2
    warnings = [message for message in console.messages if "could not be copied" in message]
    store = fsspec.filesystem("memory")
    assert store.exists(f"/bucket/run/step-000005/{MANIFEST}") == arrives
    assert len(warnings) == (0 if arrives else 2)
    assert all("in 3 tries (PermissionError: 403: " in w and "the run goes on" in w for w in warnings)
    if not arrives:
        assert len(made[0].asked) == 6


def test_what_waits_to_be_copied_is_not_removed(make_config, monkeypatch):
    """The copy begins only when the run is nearly done; by then `keep` would have removed it."""
    go = threading.Event()
    copy = Bucket._copy

    def slow(self, checkpoint):
        assert go.wait(60)
        copy(self, checkpoint)

    monkeypatch.setattr(Bucket, "_copy", slow)
    options = {"every": 2, "keep": 1, "copy_to": "memory://bucket/run", "copy_every": 2}
    seen = []

    def look():
        seen.extend(path.name for path in finished_checkpoints(Path(config.out)))
        go.set()

    config = make_config(evaluation=QUIET, checkpoint={**options, "asynchronous": False})
    train(config, console=Recorder({9: look}))
    assert seen == ["step-000002", "step-000004", "step-000006", "step-000008"]
    store = fsspec.filesystem("memory")
    assert all(store.exists(f"/bucket/run/step-{n:06}/{MANIFEST}") for n in (2, 4, 6, 8, 10))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere://bucket", r"checkpoint.copy_to: nowhere://bucket: .*nowhere"),
        ("s3://bucket/run", r"checkpoint.copy_to: s3://bucket/run: .*needs `pip install s3fs`"),
    ],
)
def test_an_address_that_nothing_opens_is_refused_before_the_run(make_config, address, message):
    try:
        import s3fs  # noqa: F401
    except ImportError:
        pass
    else:
        if address.startswith("s3"):
            address, message = "nowhere://x", "nowhere"
    config = make_config(checkpoint={"copy_to": address})
    with pytest.raises(InputError, match=message):
        train(config, console=Recorder())
    assert not Path(config.out).exists() or not list(Path(config.out).iterdir())
