"""`fim` of a source: documents are rearranged, each within itself, the same however the work is cut."""

import json

import pytest

from stablelm.config import InputError
from stablelm.storage import keyed_uint64
from stablelm.tokenizer import Tokenizer, train_tokenizer


def write(path, count=120):
    records = [
        {"id": f"f{i}.py", "text": f"def f{i}(a):\n    return a * {i}\n" * (1 + i % 3)} for i in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, {record["id"]: record["text"] for record in records}


@pytest.fixture
def roomy(tmp_path):
    train_tokenizer(["def f1(a):\n    return a * 2\n" * 9], 290, tmp_path / "tok")
    return tmp_path / "tok"


def whole(dataset, name, side="train"):
    """Document id → its ids."""
    file = dataset.train(name) if side == "train" else dataset.held_out(name)
    names = dataset.document_ids(name, range(file.num_documents), side)
    return {names[i]: file.document(i).tolist() for i in range(file.num_documents)}


def expected(tokenizer, text, seed, *key):
    """The transformation written out from its definition: keyed draws, then the two layouts."""

    def draw(what):
        return keyed_uint64("fim", seed, what, *key)

    ids = {name: tokenizer.token_to_id(f"<fim_{name}>") for name in ("prefix", "middle", "suffix")}
    if draw("chosen") >= 2**63:
        return tokenizer.encode_documents([text])[0], "whole"
    first, last = sorted(draw(cut) % (len(text) + 1) for cut in ("first", "last"))
    a, b, c = tokenizer.encode_documents([text[:first], text[first:last], text[last:]])
    if draw("spm") < 2**62:
        return [ids["prefix"], ids["suffix"], *c, ids["middle"], *a, *b], "spm"
    return [ids["prefix"], *a, ids["suffix"], *c, ids["middle"], *b], "psm"


def test_every_document_is_itself_rearranged_or_whole(run, tmp_path, roomy):
    path, texts = write(tmp_path / "code.jsonl")
    said = []
    fim = {"rate": 0.5, "spm_rate": 0.25}
    dataset = run(
        code={"paths": [str(path)], "fim": fim}, prose={"paths": [str(path)]}, tokenizer=roomy,
        recipe={"seed": 5, "held_out": 0.2}, progress=said.append,
    )  # fmt: skip
    tokenizer = Tokenizer.from_file(dataset.path)
    found, forms = whole(dataset, "code"), []
    for name, ids in found.items():
        wanted, form = expected(tokenizer, texts[name], 5, "code", name)
        assert ids == [*wanted, tokenizer.eos_id], "with the separator at its end"
        forms.append(form)
    counts = dataset.info("code")["fim"]
    assert {form: forms.count(form) for form in ("psm", "spm")} == counts and all(counts.values())
    assert "fim" not in dataset.info("prose") and len(found) > 80
    plain = [whole(dataset, "prose"), whole(dataset, "prose", "held_out"), whole(dataset, "code", "held_out")]
    for documents in plain:  # other sources, and what is held out, stay as they are
        assert documents and all(
            ids == [*tokenizer.encode_documents([texts[name]])[0], tokenizer.eos_id]
            for name, ids in documents.items()
        )
    assert any("gets <fim_prefix> 290, " in line and "has 294 ids or more" in line for line in said)
    assert dataset.tokenizer_size == 294
    assert any(f"filling in: {counts['psm']} as PSM, {counts['spm']} as SPM" in s for s in dataset.describe())
    size = sum(len(text.encode()) for text in texts.values())
    assert sum(dataset.text_bytes("code", side) for side in ("train", "held_out")) == size


def test_the_bytes_do_not_depend_on_shards_or_batches(run, tmp_path, roomy, monkeypatch):
    path, _ = write(tmp_path / "code.jsonl", 24)
    code = {"paths": [str(path)], "fim": {}}
    base = run(out="base", code=code, tokenizer=roomy)
    monkeypatch.setattr("stablelm.data.stages.tokenizing.BATCH_DOCUMENTS", 7)
    monkeypatch.setattr("stablelm.data.stages.reading.SHARD_BYTES", 300)
    assert run(out="cut", code=code, tokenizer=roomy).fingerprint == base.fingerprint
    other = run(out="seed", code=code, tokenizer=roomy, recipe={"seed": 6})
    assert {k: sorted(v) for k, v in whole(other, "code").items()} != whole(base, "code")
    with pytest.raises(InputError, match="sources.code.fim"):
        run(out="base", code={"paths": [str(path)], "fim": {"rate": 0.9}}, tokenizer=roomy)


def test_a_tokenizer_that_cannot_have_the_tokens_is_refused(run, tmp_path, roomy):
    path, _ = write(tmp_path / "code.jsonl", 5)
    parts = json.loads((roomy / "tokenizer.json").read_text())
    parts["model"]["vocab"]["<fim_pad>"] = parts["model"]["vocab"].pop("f")
    parts["model"]["merges"] = []
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(InputError, match="<fim_pad> is an ordinary token there"):
        run(code={"paths": [str(path)], "fim": {}}, tokenizer=tmp_path / "bad")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()
