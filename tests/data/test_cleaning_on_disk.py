"""Every cleaning group on real text that lies on the disk, as shards do: mapped and read-only."""

import json

import numpy as np
import pytest

from stablelm.config.cleaning import CodeHeuristics, LineCorrections, Pii
from stablelm.data import code_signals, line_corrections, pii
from stablelm.data.edits import merge
from stablelm.data.texts import Texts


@pytest.fixture(scope="module")
def documents(shared):
    import zstandard

    with open(shared / "data" / "corpus" / "web.jsonl.zst", "rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read(600_000).split(b"\n")[:-1]
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture
def mapped(documents, tmp_path):
    texts = Texts.of(documents)
    texts.data.tofile(tmp_path / "data")
    return Texts(np.memmap(tmp_path / "data", np.uint8, "r"), texts.ends)


GROUPS = [
    (line_corrections, LineCorrections()),
    (code_signals, CodeHeuristics(html=True)),
    (pii, Pii()),
]


@pytest.mark.parametrize(("group", "settings"), GROUPS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_document_is_measured_alike_alone_and_among_others(group, settings, documents, mapped):
    whole = group.measure(mapped, settings)
    assert all(len(values) == len(documents) for values in whole.values())
    for number in range(0, len(documents), 7):
        alone = group.measure(Texts.of([documents[number]]), settings)
        assert {name: values[0] for name, values in alone.items()} == {n: v[number] for n, v in whole.items()}
    assert len(group.decide(whole, settings)) == len(documents)


def test_both_groups_of_edits_together(documents, mapped):
    lines, masks = line_corrections.edits(mapped, LineCorrections()), pii.edits(mapped, Pii())
    both = merge(lines, masks)
    changed = both.apply_all(mapped)
    assert both == merge(masks, lines) and len(masks) > 20 and len(lines) > 20
    touched = set(both.rows.tolist())
    for number, document in enumerate(documents):
        text = changed[number]
        assert (text == document) == (number not in touched)
        assert text.encode() == both.of_row(number).apply(document.encode())
    once = pii.edits(changed, Pii())
    assert len(once) == 0, "what is masked stays as it is"
