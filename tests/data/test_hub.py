"""Data sets through the `datasets` library: saved ones and folders are read as they are, no code is run."""

import json

import pytest

datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")

from stablelm.config import InputError  # noqa: E402
from stablelm.config.recipe import SourceConfig  # noqa: E402
from stablelm.data.accounts import SourceAccount  # noqa: E402
from stablelm.data.discovery import find_files  # noqa: E402
from stablelm.data.inputs import InputFile, Span  # noqa: E402
from stablelm.data.pieces import pieces, read_piece  # noqa: E402

TEXTS = [f"row {n}" for n in range(200)]


@pytest.fixture
def table():
    datasets.disable_progress_bars()
    sets = [{"pile_set_name": "Books3" if n == 7 else "Web"} for n in range(200)]
    return datasets.Dataset.from_dict({"text": TEXTS, "id": [f"i{n}" for n in range(200)], "meta": sets})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    for n in range(3):
        lines = (json.dumps({"text": f"file {n} line {k}"}) + "\n" for k in range(70))
        (tmp_path / f"folder/train-{n}.jsonl").write_text("".join(lines))
    return tmp_path / "folder"


def texts(result):
    return [document.text for document in result[0]]


def test_a_saved_data_set(read, table, tmp_path):
    table.save_to_disk(tmp_path / "saved", num_shards=3)
    documents, account = read(tmp_path / "saved", format="datasets")
    assert texts((documents, account)) == TEXTS
    assert [(d.id, d.number) for d in documents[:2]] == [("i0", 1), ("i1", 2)]
    assert account["read_bytes"] == len("".join(TEXTS))


def test_splits_of_a_saved_data_set(read, table, tmp_path):
    datasets.DatasetDict(train=table, test=table.select(range(2))).save_to_disk(tmp_path / "saved")
    assert len(read(tmp_path / "saved", format="datasets")[0]) == 200
    assert len(read(tmp_path / "saved", format="datasets", split="test")[0]) == 2
    with pytest.raises(InputError, match=r"no split 'valid' \(there: test, train\)"):
        read(tmp_path / "saved", format="datasets", split="valid")


@pytest.mark.parametrize("target", [1, 500, 2000, 10**9])
def test_a_saved_data_set_in_pieces(table, tmp_path, target):
    table.save_to_disk(tmp_path / "saved", num_shards=2)
    config = SourceConfig(name="s", paths=[str(tmp_path / "saved")], format="datasets")
    total, documents = SourceAccount(), []
    made = pieces(find_files(config, ".", total.ignored), target)
    assert (len(made) > 1) == (target < 10**9)
    for piece in made[:: max(1, len(made) // 20)] if target == 1 else made:
        account = SourceAccount()
        documents += read_piece(piece, config, "stop", account)
        total.merge(account)
    if target > 1:
        assert [d.text for d in documents] == TEXTS
        assert [d.number for d in documents] == [*range(1, 201)]
        assert total.as_dict()["kept"] == 200
    else:
        assert all(d.text == f"row {d.number - 1}" for d in documents)


def test_a_folder_of_data_files_is_streamed_a_shard_at_a_time(read, folder):
    documents, account = read(folder, format="datasets")
    assert texts((documents, account)) == [f"file {n} line {k}" for n in range(3) for k in range(70)]
    assert [documents[n].id for n in (0, 71)] == ["folder/train/0:1", "folder/train/1:2"]
    assert [file["read"] for file in account["inputs"]] == [70, 70, 70]


def test_labels_are_excluded(read, table, tmp_path):
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set/train.parquet")
    documents, account = read(
        tmp_path / "set", format="datasets", label_key="meta.pile_set_name", exclude=["books 3"]
    )
    assert len(documents) == 199
    assert account["dropped"] == {"excluded: books 3": 1}


def test_code_that_comes_with_a_data_set_is_never_run(read, tmp_path):
    (tmp_path / "script").mkdir()
    (tmp_path / "script/script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="It brings code, which is never run"):
        read(tmp_path / "script", format="datasets")
    assert not (tmp_path / "ran").exists()


def test_what_changed_since_it_was_found(folder):
    config = SourceConfig(name="s", paths=[str(folder)], format="datasets")
    made = pieces(find_files(config, ".", SourceAccount().ignored), 10**9)
    (folder / "train-1.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(InputError, match="shard 1: changed since it was found"):
        list(read_piece(made[0], config, "stop", SourceAccount()))


def test_broken_data(read, folder, table, tmp_path):
    (folder / "train-1.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(InputError, match="shard 2, row 1: the rows from here on cannot be read"):
        read(folder, format="datasets")
    documents, account = read(folder, format="datasets", on_error="skip")
    assert (len(documents), account["errors"]) == (140, {"unreadable": 1})
    table.save_to_disk(tmp_path / "saved")
    [file] = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"saved, row 1: the rows from here on cannot be read"):
        read(tmp_path / "saved", format="datasets")


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"split": "valid"}, r"subset '', split 'valid'\) cannot be opened"), ({"subset": "x"}, r"subset 'x'")],
)
def test_splits_and_subsets_that_are_not_there(read, folder, keys, message):
    with pytest.raises(InputError, match=message):
        read(folder, format="datasets", **keys)


def test_a_name_without_network_is_one_message(read, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known\nand a long trace")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    with pytest.raises(
        InputError, match=r"^nobody/nothing: the data set .* \(Name or service not known\)\. Check"
    ):
        read("nobody/nothing", format="datasets")
    with pytest.raises(InputError, match="no such folder, and not a name on the Hub"):
        read("a/b/c", format="datasets")


def test_a_name_is_pinned_to_its_commit(folder, monkeypatch):
    """The library is given the commit that was found, when planning and when reading."""
    asked = []
    real = datasets.load_dataset

    def load(path, name=None, *, split, streaming, revision):
        asked.append((path, name, split, streaming, revision))
        return real(str(folder), split=split, streaming=streaming)

    class Info:
        sha = "c0ffee"

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, entry, revision: Info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    config = SourceConfig(name="s", paths=["owner/name"], format="datasets", subset="en", revision="v1")
    files = find_files(config, ".", SourceAccount().ignored)
    assert [file.id for file in files] == [f"name/en/train/{n}" for n in range(3)]
    told = InputFile.from_dict(json.loads(json.dumps(files[2].as_dict())))
    from stablelm.data.sources import read_spans

    found = list(read_spans([Span(told)], config, "stop", SourceAccount()))
    assert [d.text for d in found][:1] == ["file 2 line 0"]
    assert asked == [("owner/name", "en", "train", True, "c0ffee")] * 2


def test_the_missing_extra(read, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=r'pip install "stablelm\[datasets\]"'):
        read(folder, format="datasets")
