"""The pipeline as a whole: the bytes of the first implementation, by any number of processes, also after
being killed, and nothing done twice that need not be."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.config.recipe import DataRecipe
from stablelm.data import Dataset
from stablelm.data.execution import run_task
from stablelm.data.executors.local import Local
from stablelm.data.preparation import prepare, run_stage
from stablelm.data.progress import Plain


def corpus(path, files=60):
    """Pieces of books, records without an id, ids that occur twice."""
    with open(path, "w") as file:
        for i in range(files):
            for j in range(4):
                record = {"id": f"book{i}.md#{j}", "text": f"the cat number {i} sat on mat {j}"}
                file.write(json.dumps(record) + "\n")
            text = f"no id but <|endoftext|> {i % 7}\n\n café e\u0301 漢字"
            file.write(json.dumps({"text": text}) + "\n")
            file.write(json.dumps({"id": f"twice{i % 5}", "text": f"a hat for {i}"}) + "\n")
    return path


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def whole(out):
    """Every file of a prepared directory by its bytes."""
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*")) if p.is_file()
    }  # fmt: skip


@pytest.fixture
def small_pieces(monkeypatch):
    """Many tasks of little text, and processes for them."""
    monkeypatch.setattr("stablelm.data.stages.reading.PIECE_BYTES", 3000)
    monkeypatch.setattr("stablelm.data.stages.reading.SHARD_BYTES", 1200)
    monkeypatch.setattr("stablelm.data.executors.local.SMALL", 0)


@pytest.fixture
def counted(monkeypatch):
    """The stage of every task that was run in this process."""
    ran = []

    def run(stage, task, work):
        ran.append(stage.name)
        run_task(stage, task, work)

    monkeypatch.setattr("stablelm.data.executors.local.run_task", run)
    return ran


@pytest.fixture
def recipe(tmp_path, small_tokenizer):
    """`recipe(…)`: changes to a recipe of one source."""
    path = corpus(tmp_path / "x.jsonl")

    def made(**changes):
        values = {
            "out": str(tmp_path / "out"), "work": str(tmp_path / "work"), "tokenizer": str(small_tokenizer),
            "sources": [{"name": "web", "paths": [str(path)]}], "held_out": 0.2, "workers": 1, **changes,
        }  # fmt: skip
        return DataRecipe.model_validate(values)

    return made


# What the implementation without stages wrote for this corpus (commit c3bab86).
GOLDEN = {
    "held_out.bin": "bd519a5e493d01c05561de088629770448dda210f5f2b7a15f9ff0e66b6547ae",
    "held_out.ids": "15511ab4d2aa6cc90f8c482e397419a68c4eaaaec92b9c92789d0668c363cd7b",
    "held_out.idx": "dd4b1f4ef2188bc91942e72b92d20255de2810a5dcd5098e97cf201f82ea9fc4",
    "train.bin": "cec3b494779f792dbc2e3f491ff2182a58ef3dbef4953b3e229e952bc44d820a",
    "train.ids": "fee8265d8416dfb1da3a8ba8bec1867dcb97db0d52fc619aee03a1cb5e981f98",
    "train.idx": "7712b5773c2813022a52fedcd25b5d13d1f711b2dc8c15fb32cb32c63626ddb3",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_the_first_implementation(recipe, tmp_path, small_pieces, workers):
    prepare(recipe(workers=workers))
    assert hashes(tmp_path / "out/web") == GOLDEN
    assert len(list((tmp_path / "work/read").iterdir())) > 5, "many tasks"


def test_shards_end_to_end_are_the_same_stream(recipe, tmp_path, small_pieces):
    prepare(recipe())
    prepare(recipe(out=str(tmp_path / "many"), shard_tokens=500))
    one, many = Dataset(tmp_path / "out"), Dataset(tmp_path / "many")
    count = many.info("web")["train"]["files"]
    assert count > 5
    assert sorted(p.name for p in (tmp_path / "many/web").glob("train-*.bin")) == [
        f"train-{n:05d}.bin" for n in range(count)
    ]
    a, b = one.train("web"), many.train("web")
    assert (a.num_tokens, a.num_documents) == (b.num_tokens, b.num_documents)
    assert a.tokens(0, a.num_tokens).tolist() == b.tokens(0, b.num_tokens).tolist()
    assert a.sizes.tolist() == b.sizes.tolist()
    everything = range(a.num_documents)
    assert one.document_ids("web", everything) == many.document_ids("web", everything)
    sizes = [shard.num_tokens for shard in b.shards]
    assert max(sizes) < 2 * sum(sizes) / len(sizes), "of about one size"
    many.verify()


# --- nothing twice -----------------------------------------------------------------------------------------


def test_what_is_up_to_date_is_left_alone(recipe, tmp_path, small_pieces, counted):
    prepare(recipe())
    before, lines = whole(tmp_path / "out"), []
    counted.clear()
    prepare(recipe(workers=2), progress=lines.append)
    assert (counted, lines) == ([], [f"{tmp_path}/out: up to date"])
    shutil.rmtree(tmp_path / "work")
    prepare(recipe(), progress=lines.append)
    assert lines[1:] == lines[:1], "also told from the inputs' hashes"
    assert whole(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"seed": 2}, {"order", "layout", "assemble"}),
        ({"held_out": 0.4}, {"order", "layout", "assemble"}),
        ({"append_eod": False}, {"tokenize", "order", "layout", "assemble"}),
        ({"shard_tokens": 1000}, {"assemble"}),
        ({"max_error_rate": 0.5}, {"assemble"}),  # whose files went into OUT
    ],
)
def test_a_change_repeats_what_it_concerns(recipe, tmp_path, small_pieces, counted, changes, stages):
    prepare(recipe())
    with pytest.raises(
        InputError, match=rf"out: already exists, .*changed since:\n  {next(iter(changes))}: "
    ):
        prepare(recipe(**changes))
    shutil.rmtree(tmp_path / "out")
    counted.clear()
    prepare(recipe(**changes))
    assert set(counted) == stages
    fresh = recipe(**changes, out=str(tmp_path / "fresh"), work=str(tmp_path / "fresh.work"))
    prepare(fresh)
    assert whole(tmp_path / "fresh") == whole(tmp_path / "out")


def test_only_the_file_that_changed_is_read_again(recipe, tmp_path, counted, monkeypatch):
    monkeypatch.setattr("stablelm.data.stages.reading.PIECE_BYTES", 100)
    for number in range(5):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / f"texts/{number}.txt").write_text(f"the cat {number} " * 30)
    sources = [{"name": "web", "paths": [str(tmp_path / "texts")]}]
    prepare(recipe(sources=sources))
    (tmp_path / "texts/3.txt").write_text("the hat")
    (tmp_path / "texts/0.txt").unlink()
    (tmp_path / "texts/9.txt").write_text("the mat")
    with pytest.raises(InputError) as error:
        prepare(recipe(sources=sources))
    for fault in ("3.txt changed: 300 bytes then, 7 now", "9.txt is new", "0.txt is gone"):
        assert fault in str(error.value)
    shutil.rmtree(tmp_path / "out")
    counted.clear()
    prepare(recipe(sources=sources))
    assert counted.count("read") <= 5  # pieces are known by number as well
    assert Dataset(tmp_path / "out").info("web")["kept"] == 5
    fresh = recipe(sources=sources, out=str(tmp_path / "fresh"), work=str(tmp_path / "fresh.work"))
    prepare(fresh)
    assert whole(tmp_path / "fresh") == whole(tmp_path / "out")


def test_a_flip_of_the_same_size_under_a_finished_output_is_noticed(recipe, tmp_path):
    prepare(recipe())
    path = tmp_path / "x.jsonl"
    path.write_text(path.read_text().replace("cat", "hat"))
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(InputError, match=r"web: .*x\.jsonl changed: its sha256 is another"):
        prepare(recipe())


def test_another_tokenizer_is_noticed(recipe, tmp_path, small_tokenizer):
    prepare(recipe())
    other = tmp_path / "tokenizer"
    shutil.copytree(small_tokenizer, other)
    content = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(content + "\n")
    with pytest.raises(InputError, match="is another tokenizer than the one in"):
        prepare(recipe(tokenizer=str(other)))


def test_work_that_was_cut_is_done_again(recipe, tmp_path, small_pieces, counted):
    prepare(recipe())
    before = whole(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    [*_, shard] = sorted((tmp_path / "work/read").rglob("*.docs"))
    shard.write_bytes(shard.read_bytes()[:-1])
    counted.clear()
    prepare(recipe())
    assert (counted.count("read"), counted.count("tokenize")) == (1, 0)
    assert whole(tmp_path / "out") == before


def test_a_second_preparation_in_one_work_directory_is_refused(recipe, tmp_path):
    def again(line):
        with pytest.raises(InputError, match="work: in use by process"):
            prepare(recipe(out=str(tmp_path / "other")))

    prepare(recipe(), progress=again)


def test_parts_of_an_array_make_the_same(recipe, tmp_path, small_pieces):
    prepare(recipe())
    parts = recipe(out=str(tmp_path / "parts"), work=str(tmp_path / "parts.work"))
    quiet = Plain(lambda line: None)
    with pytest.raises(InputError, match="not done yet.*Run the stage 'plan' first"):
        run_stage(parts, "read", 0, 2, quiet)
    with pytest.raises(InputError, match="no stage 'reed'; did you mean 'read'"):
        run_stage(parts, "reed", 0, 2, quiet)
    for stage in ("plan", "read", "tokenize", "order", "layout", "assemble"):
        ran = [run_stage(parts, stage, part, 3, quiet) for part in (2, 0, 1)]
        assert sum(ran) == len([p for p in (tmp_path / "parts.work" / stage).iterdir() if p.is_dir()])
        assert run_stage(parts, stage, 0, 1, quiet) == 0
    prepare(parts)
    assert whole(tmp_path / "parts") == whole(tmp_path / "out")


class LosesWorkers(Local):
    """Whose workers are killed between two stages, while they have nothing to do."""

    def map(self, stage, tasks, work, finished):
        for worker in self._pool:
            worker.process.kill()
            worker.process.join()
        super().map(stage, tasks, work, finished)


def test_a_worker_that_was_lost_while_idle_is_one_error(recipe, tmp_path, small_pieces):
    with pytest.raises(
        RunError, match=r"a worker process was killed \(signal 9\) while doing \w+/.*run again"
    ):
        prepare(recipe(), executor=LosesWorkers(2))
    assert not (tmp_path / "out").exists()
    prepare(recipe(workers=1))
    Dataset(tmp_path / "out").verify()


# --- killed ------------------------------------------------------------------------------------------------

KILLED = """
import sys
from stablelm.config.recipe import DataRecipe
from stablelm.data import preparation, progress
from stablelm.data.executors import local
from stablelm.data.stages import reading
if __name__ == "__main__":
    reading.PIECE_BYTES, reading.SHARD_BYTES = 3000, 1200
    local.SMALL, progress._SECONDS_BETWEEN_LINES = 0, -1.0
    recipe = DataRecipe.model_validate_json(sys.argv[1])
    preparation.prepare(recipe, progress=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("workers", [2])  # 1: tests/long/test_rare.py
def test_killed_again_and_again_the_bytes_are_the_same(recipe, tmp_path, small_pieces, workers):
    prepare(recipe(out=str(tmp_path / "calm"), work=str(tmp_path / "calm.work")))
    wanted, moment = recipe(workers=workers).model_dump_json(), random.Random(workers)
    kills = 0
    while not (tmp_path / "out").exists():
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, wanted], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        for _ in range(moment.randint(1, 12)):
            if not child.stdout.readline():
                break
        time.sleep(moment.random() * 0.01)
        os.killpg(child.pid, signal.SIGKILL) if moment.random() < 0.5 else child.kill()
        child.wait()
        child.stdout.close()
        kills += 1
        assert kills < 80
    assert kills > 3
    prepare(recipe())
    assert whole(tmp_path / "out") == whole(tmp_path / "calm")
    assert [p.name for p in tmp_path.glob("out*")] == ["out"]


# --- the core alone ----------------------------------------------------------------------------------------

ALONE = """
import sys
for name in ("pyarrow", "zstandard", "datasets", "fsspec", "ray", "numba", "torch"):
    sys.modules[name] = None  # importing it fails
from stablelm.config.recipe import DataRecipe
from stablelm.data.preparation import prepare
prepare(DataRecipe.model_validate_json(sys.argv[1]))
"""


def test_a_plain_recipe_needs_no_extra(recipe, tmp_path):
    wanted = recipe().model_dump_json()
    made = subprocess.run([sys.executable, "-c", ALONE, wanted], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert hashes(tmp_path / "out/web") == GOLDEN


ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[2])
if __name__ == "__main__":
    from stablelm.config.recipe import DataRecipe
    from stablelm.data import execution
    from stablelm.data.executors import local
    from stablelm.data.preparation import prepare
    from stablelm.data.stages import reading
    assert execution.DONE == "finished.json"
    reading.PIECE_BYTES, local.SMALL = 3000, 0
    prepare(DataRecipe.model_validate_json(sys.argv[1]))
"""


def test_workers_run_the_code_that_this_process_runs(recipe, tmp_path, root):
    """A checkout put in front of `sys.path`, as scripts do, with another version installed."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "stablelm", tmp_path / "here/stablelm", ignore=ignored)
    path = tmp_path / "here/stablelm/data/execution.py"
    path.write_text(path.read_text().replace('DONE = "done.json"', 'DONE = "finished.json"'))
    script = [sys.executable, "-c", ELSEWHERE, recipe(workers=2).model_dump_json(), str(tmp_path / "here")]
    made = subprocess.run(script, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert hashes(tmp_path / "out/web") == GOLDEN
