"""The documents name files that exist, state the seed whole, and keep the machine out."""

import re

import pytest

DOCUMENTS = [
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/adaptation.md",
    "docs/architecture.md",
    "docs/dependencies.md",
    "docs/evaluation.md",
    "docs/finetuning.md",
    "docs/generation.md",
    "docs/guide-finetuning.md",
    "docs/parallelism.md",
    "docs/phases.md",
    "docs/preference.md",
    "docs/preflight.md",
    "docs/robustness.md",
    "docs/seed.md",
    "docs/watching-a-run.md",
]
FOLDERS = ("tests/", "docs/", "configs/", "tools/", "benchmarks/", "runs/", "stablelm/")
GENERATED = {"runs/demo"}
MADE = {"docs/guide-finetuning.md": ("data/", "models/", "runs/")}  # by the commands of the page


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_in_a_document_exist(root, name):
    """`config/model.py` is meant below the package, `tests/…` and its like from the top of the checkout."""
    text = (root / name).read_text("utf-8")
    named = set(re.findall(r"`(\.?[\w-]+/[\w./-]*)`", text)) | set(
        re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    )
    for path in sorted(named - GENERATED):
        if "…" in path or path.startswith(("stabilityai/", *MADE.get(name, ()))):
            continue
        at_top = path.startswith((*FOLDERS, ".")) or (root / path).exists()
        assert (root / path if at_top else root / "stablelm" / path).exists(), f"{name} names {path}"


def test_every_room_is_on_the_map(root):
    text = (root / "docs" / "architecture.md").read_text("utf-8")
    for folder in (root / "stablelm").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"| `{folder.name}` |" in text, f"docs/architecture.md has no row for {folder.name}"


def test_the_seeds_numbers_are_stated(root):
    text = (root / "docs" / "seed.md").read_text("utf-8")
    for number in (
        "2,795,443,200",
        "50,257",
        "50,277",
        "50,304",
        "4,005,560,320,000",
        "4,194,304",
        "955,000",
        "4,775",
    ):
        assert number in text
    assert 955_000 * 4_194_304 == 4_005_560_320_000
    assert "not affiliated with Stability AI" in " ".join(text.split())


def test_every_section_of_the_card_is_answered(root, shared):
    """Rows for the card's bold statements: each of its words in `**…**` has its answer here."""
    card = (shared / "seed" / "model-card.md").read_text("utf-8")
    answers = (root / "docs" / "seed.md").read_text("utf-8").lower()
    wanted = {
        "Developed by": "developed by", "Model type": "auto-regressive", "Language(s)": "english",
        "Library": "library: gpt-neox", "License": "cc by-sa-4.0", "Contact": "contact",
        "Position Embeddings": "rotary position", "Normalization": "layernorm",
        "Tokenizer": "tokenizer: gpt-neox", "Hardware": "256 a100", "Software": "zero-1",
    }  # fmt: skip
    bold = re.findall(r"^\* \*\*([^*]+)\*\*", card, re.M)
    assert set(bold) == set(wanted)
    for statement, answer in wanted.items():
        assert answer in answers, f"docs/seed.md says nothing about {statement!r}"
