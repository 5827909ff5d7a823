"""Word blocklists: whole words and phrases, scripts without spaces anywhere."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.cleaning import WordBlocklist
from stablelm.data.texts import Texts
from stablelm.data.word_blocklist import decide, measure, measured_by

WORDS = "# listed\nsludge\nFoul Play\na$$\nstraße\n女の\n🖕\nnasty-word\n"


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "words.txt").write_text(WORDS, encoding="utf-8")
    return WordBlocklist(words=[str(tmp_path / "words.txt")])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", 0),
        ("Nothing here.", 0),
        ("sludge", 1),
        ("SLUDGE!", 1),
        ("a sludge\r\nb", 1),
        ("sludges and sludgeworks", 0),
        ("_sludge_", 0),  # _ is part of a word, as in C4's pattern
        ("x-sludge-y", 1),
        ("foul play", 1),
        ("foul  play", 0),
        ("foul plays", 0),
        ("it is a$$.", 1),
        ("a$ a", 0),
        ("a$$b", 0),
        ("die STRASSE, die Straße", 1),
        ("彼女のこと", 1),  # inside a word
        ("🖕", 1),
        ("ok 🖕 ok", 1),
        ("ok🖕ok", 0),
        ("a nasty-word", 1),
        ("nasty word", 0),
        ("sludge sludge foul play", 2),
    ],
)
def test_what_is_found(settings, text, found):
    columns = measure(Texts.of(["", text]), settings)
    assert columns["words.found"].tolist() == [0, found]
    assert decide(columns, settings).tolist() == ["", "words: listed word" if found else ""]
    assert decide(columns, settings.model_copy(update={"max_found": 1})).tolist()[1] == (
        "words: listed word" if found > 1 else ""
    )


@given(st.text(alphabet="adgelsuSLUDGE$-_ \nfoulpy", max_size=40))
def test_the_same_as_one_expression_of_all_entries(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "entries.txt"
    entries = ["sludge", "a$$", "foul", "l", "-", "a-d", "$"]
    if not path.exists():
        path.write_text("\n".join(entries))
    plain = re.search(rf"(?:\W|^)({'|'.join(map(re.escape, entries))})(?:\W|$)", text.lower())
    columns = measure(Texts.of([text]), WordBlocklist(words=[str(path)]))
    assert bool(columns["words.found"][0]) == (plain is not None)


def test_lists_are_hashed_and_checked(settings, tmp_path):
    before = measured_by(settings)
    (tmp_path / "words.txt").write_text("other\n")
    assert measured_by(settings) != before
    (tmp_path / "words.txt").write_text("# none\n")
    with pytest.raises(InputError, match="words.txt: holds no entry"):
        measure(Texts.of(["a"]), settings)


def test_five_megabytes(settings):
    texts = Texts.of(["a " * 2_500_000, "x" * 5_000_000])
    assert measure(texts, settings)["words.found"].tolist() == [0, 0]
