"""`stablelm perplexity`: the table, the JSON, and files that cannot be read."""

import json
import math

import pytest

from tests.cli.conftest import sentences


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "one.txt").write_text(sentences(900, 20))
    lines = [json.dumps({"text": sentences(901 + i, 2 + i)}) for i in range(6)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    return tmp_path / "one.txt", tmp_path / "many.jsonl"


def test_table_and_json(world, run, texts):
    said = run("perplexity", world / "model", *texts)
    assert (said.code, said.err) == (0, "")
    assert f"{texts[0]}: 1 document, " in said.out and f"{texts[1]}: 6 documents, " in said.out
    assert "\nall: 7 documents, " in said.out
    assert said.out.count("±") == 6, "none for one document"
    told = json.loads(run("perplexity", world / "model", *texts, "--json").out)
    one, many = told["files"]
    assert (told["window"], told["stride"]) == (128, 128)
    assert one["text_bytes"] == texts[0].stat().st_size and one["loss_standard_error"] is None
    assert many["documents"] == 6 and 0 < many["loss_standard_error"] < many["loss"]
    assert f"perplexity     {many['perplexity']:.6g} ± {many['perplexity_standard_error']:.3g}\n" in said.out
    assert told["all"]["tokens"] == one["tokens"] + many["tokens"]
    sure = told["all"]["calibration"]
    assert sum(row["tokens"] for row in sure["bins"]) == told["all"]["tokens"] and 0 < sure["ece"] < 1
    assert f"calibration    {sure['ece']:.4f} expected error" in said.out and "confidence" not in said.out
    shown = run("perplexity", world / "model", texts[0], "--calibration").out
    assert f"{one['calibration']['bins'][0]['tokens']:>12,} tokens  confidence " in shown
    assert one["perplexity"] == pytest.approx(math.exp(one["loss"])) and 1 < one["perplexity"] < 340


def test_a_stride_gives_more_context(world, run, texts):
    line = ("perplexity", world / "model", texts[0], "--json", "--window", 32)
    apart, close = (json.loads(run(*line, *more).out) for more in ((), ("--stride", 4)))
    assert (apart["stride"], close["stride"]) == (32, 4)
    assert apart["all"]["tokens"] == close["all"]["tokens"]
    assert close["all"]["loss"] < apart["all"]["loss"]


def test_by_position_and_beyond_the_context(world, run, texts):
    line = ("perplexity", world / "model", texts[0], "--by-position", 4)
    told = json.loads(run(*line, "--window", 64, "--json").out)["files"][0]["by_position"]
    assert [(row["first"], row["last"]) for row in told] == [(1, 16), (17, 32), (33, 48), (49, 64)]
    shown = run(*line, "--window", 64).out
    assert f"tokens      49 to      64  loss {told[3]['loss']:.4f}" in shown
    assert "tokens     151 to     200" in run(*line, "--window", 200, "--beyond-context").out
    said = run("perplexity", world / "model", *texts, "--by-position", 2, "--window", 128)
    assert said.code == 0 and "many.jsonl: no text has 128 tokens" in said.err

    def refused(*more):
        said = run(*line, *more)
        assert said.code == 2, said.out
        return said.err

    assert "windows that do not overlap: leave --stride away" in refused("--stride", 8)
    assert "the window has 3 tokens; ask for fewer parts" in refused("--window", 3)
    assert "no text fills a window of 9,999 tokens" in refused("--window", 9999, "--beyond-context")


def test_mistakes(world, run, texts, tmp_path):
    def refused(*arguments):
        said = run("perplexity", world / "model", *arguments)
        assert (said.code, said.out) == (2, "") and said.err.startswith("error: ")
        return said.err

    (tmp_path / "empty.txt").write_bytes(b"")
    assert "empty.txt: holds no text" in refused(texts[0], tmp_path / "empty.txt")
    assert "nowhere.txt" in refused(tmp_path / "nowhere.txt")
    assert "no text under 'body' (found: text). Name its key" in refused(texts[1], "--key", "body")
    assert "would skip tokens: the window is 16" in refused(texts[0], "--window", 16, "--stride", 17)
    assert "--window 129: the model's context is 128. --beyond" in refused(texts[0], "--window", 129)
    assert "is a directory" in refused(tmp_path).lower()
