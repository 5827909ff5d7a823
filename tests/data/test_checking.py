"""`stablelm data verify`: what is whole passes with its counts, what is not is refused by name."""

import json

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.data.checking import verify
from stablelm.data.manifest import Dataset, seal
from stablelm.data.token_files import TokenFileWriter
from stablelm.storage import write_manifest

TEXTS = ["the cat sat on the mat", "a hat with a cat", "<|endoftext|> is text here", "mat mat mat"]


@pytest.fixture
def prepared(run, tmp_path):
    """`prepared(…)`: TEXTS as a dataset, with changes to the recipe."""

    def made(**recipe):
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(TEXTS)))
        return run(web=[path], recipe={"held_out": 0, **recipe})

    return made


def rewritten(dataset, documents):
    """The token file with other documents, hashes and counts made to fit: only its ids are wrong."""
    with TokenFileWriter(dataset.path / "web" / "train", dtype=np.uint16) as writer:
        for document in documents:
            writer.add(document)
    about = {k: v for k, v in dataset.manifest.items() if k not in ("files", "sealed")}
    about["sources"]["web"]["train"] |= {
        "documents": len(documents), "tokens": sum(map(len, documents)),
    }  # fmt: skip
    write_manifest(dataset.path, seal(about))


@pytest.mark.parametrize("recipe", [{}, {"append_eod": False}, {"shard_tokens": 5}, {"held_out": 0.5}])
def test_what_is_whole(prepared, recipe):
    dataset = prepared(**recipe)
    lines = list(verify(dataset.path, samples=3))
    assert "files have the size and sha256 of the manifest" in lines[0]
    counts = [dataset.info("web")[side] for side in ("train", "held_out")]
    for side, about in zip(("train", "held_out"), counts, strict=True):
        if about["documents"]:
            said = f"web, {side}: {about['documents']:,} documents, {about['tokens']:,} tokens, largest id"
            assert any(line.startswith(said) for line in lines)
    shown = [line for line in lines if line.startswith("  document ")]
    assert 1 <= len(shown) <= 3
    assert all(any(text[:10] in line for text in TEXTS) for line in shown), "decoded as written"


def test_samples_are_the_same_every_time_and_may_be_none(prepared):
    dataset = prepared()
    assert list(verify(dataset.path, 2)) == list(verify(dataset.path, 2))
    assert not [line for line in verify(dataset.path, 0) if line.startswith("  document")]


def test_a_flipped_byte(prepared):
    dataset = prepared()
    path = dataset.path / "web" / "train.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"train\.bin: corrupt: its sha256 is not the manifest's"):
        list(verify(dataset.path))


def test_ids_that_are_not_the_tokenizers(prepared):
    dataset = prepared()
    rewritten(dataset, [[5, 60_000, 0]])
    with pytest.raises(InputError, match=r"web/train: id 60,000; .*tokenizer\.json has 290"):
        list(verify(dataset.path))


@pytest.mark.parametrize("documents", [[[5, 0, 6, 0]], [[5, 6]], [[0, 5], [6, 0, 7]]])
def test_separators_that_are_not_the_ends(prepared, documents):
    dataset = prepared()
    rewritten(dataset, documents)
    with pytest.raises(InputError, match=r"web/train: \d separators, \d of them at the end"):
        list(verify(dataset.path))


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match="not a prepared dataset"):
        list(verify(tmp_path))


def test_an_old_manifest_is_read(prepared):
    """Made before shards were counted."""
    dataset = prepared()
    about = {k: v for k, v in dataset.manifest.items() if k not in ("files", "sealed", "stages", "recipe")}
    for side in ("train", "held_out"):
        about["sources"]["web"][side].pop("files")
    write_manifest(dataset.path, seal(about))
    assert Dataset(dataset.path).train("web").num_documents == 4
    list(verify(dataset.path))
