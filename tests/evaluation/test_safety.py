"""The safety suite: its sets, what it counts of texts that must not be, its files and refusals."""

import json
import math
import re

import numpy as np
import pytest

from stablelm.auto import load
from stablelm.config import InputError
from stablelm.evaluation.evaluate import evaluate, evaluate_suite
from stablelm.evaluation.safety import LIMITS, compared, run
from stablelm.evaluation.safety import suite as safety
from stablelm.evaluation.safety.items import FILES, LEXICON, OURS, gather
from stablelm.evaluation.safety.toxicity import Classifier, Lexicon
from stablelm.evaluation.scoring import score
from stablelm.evaluation.suites import choose_tasks

ADDRESS = "jane.doe" + "@" + "mail.test-site.org"


@pytest.fixture(scope="module")
def opened(small_model):
    return load(small_model)


@pytest.fixture
def writes(monkeypatch):
    """Makes the model write given texts, in turn, instead of its own; how often it was asked."""
    asked = []

    def replace(*texts):
        def generate(model, tokenizer, prompts, **settings):
            asked.append(len(prompts))
            return [texts[(sum(asked[:-1]) + n) % len(texts)] for n in range(len(prompts))]

        monkeypatch.setattr("stablelm.evaluation.safety.continuations.generate", generate)
        return asked

    return replace


def test_our_sets_are_whole_and_balanced():
    sets, lexicon = gather(None, None)
    assert [(items.part, items.name) for items in sets] == [(part, part) for part in FILES]
    prompts, pairs, leakage = (items.rows for items in sets)
    assert len(prompts) == len({row["prompt"] for row in prompts}) >= 40 and len(leakage) >= 20
    words = Lexicon(lexicon)
    assert not any(words([row["prompt"] for row in (*prompts, *leakage)]))  # they are neutral themselves
    assert not any(words([row[side] for row in pairs for side in ("stereotype", "counter")]))
    for row in pairs:
        first, second = row["stereotype"].split(), row["counter"].split()
        assert len(first) == len(second) and sum(a != b for a, b in zip(first, second, strict=True)) == 1
    women = [row for row in pairs if row["category"] == "gender and work"]
    female = [row for row in women if re.search(r"\b(she|her)\b", row["stereotype"])]
    assert 2 * len(female) == len(women), "he and she are the stereotype equally often"
    empty = safety._searched([row["prompt"] for row in leakage], [["", ""]] * len(leakage))
    assert not any(item["spans"] for item in empty), "the prompts hold no personal data"


def test_the_lexicon_knows_words_not_parts_of_words():
    words = Lexicon(OURS / LEXICON)
    assert words(["You IDIOT!", "Shut  up", "shut up, please", "idiotic", "Scunthorpe", ""]) == [
        1, 0, 1, 0, 0, 0,
    ]  # fmt: skip


def test_toxic_continuations_are_counted(opened, writes):
    """Of five texts for each prompt, one is toxic: 20 %, for every prompt once."""
    writes(" was fine.", " said: you idiot.", " went home.", " slept.", " left.")
    found = run(*opened, name="m", limit=6)
    numbers = found.results["results"]["toxicity"]
    assert numbers == {
        "toxic_lexicon,none": pytest.approx(0.2), "toxic_lexicon_stderr,none": pytest.approx(0, abs=1e-9),
        "ever_toxic_lexicon,none": 1.0, "ever_toxic_lexicon_stderr,none": 0.0,
    }  # fmt: skip
    assert [sum(item["lexicon"]) for item in found.samples["toxicity"]] == [1.0] * 6
    assert found.results["n-samples"]["toxicity"] == {"original": 6, "effective": 6}


def test_degrees_and_errors_by_hand():
    class Degrees:
        name, degrees = "degrees", True

    samples = [{"degrees": [0.1, 0.9]}, {"degrees": [0.2, 0.3]}, {"degrees": [0.6, 0.5]}]
    numbers = safety._toxicity(samples, [Degrees()])
    shares = [0.5, 0.0, 1.0]
    assert numbers["toxic_degrees,none"] == pytest.approx(0.5)
    assert numbers["toxic_degrees_stderr,none"] == pytest.approx(np.std(shares, ddof=1) / math.sqrt(3))
    assert numbers["ever_toxic_degrees,none"] == pytest.approx(2 / 3)
    assert numbers["highest_degrees,none"] == pytest.approx((0.9 + 0.3 + 0.6) / 3)


def test_personal_data_are_found_masked_and_placed(opened, writes, tmp_path):
    writes(f" {ADDRESS} or call.", " nobody.", " us.", " me today.", " email@example.com, please.")
    found = run(*opened, name="m", limit=4, out=tmp_path)
    assert found.results["results"]["leakage"]["leaked,none"] == pytest.approx(0.2)
    assert found.details["leakage"]["found"] == {"email": 4, "ip": 0, "phone": 0, "secret": 0}
    item = found.samples["leakage"][0]
    (span,) = item["spans"]
    assert (span["continuation"], span["kind"]) == (0, "email")
    whole = (item["prompt"] + f" {ADDRESS} or call.").encode()
    assert whole[span["start"] : span["end"]].decode() == ADDRESS
    assert item["continuations"][0] == " [email] or call."
    assert item["continuations"][4] == " email@example.com, please."  # reserved for examples: nobody's


def test_a_find_that_begins_in_the_prompt_counts_when_the_model_ends_it():
    (item,) = safety._searched(["ssh root@"], [["server.mail.test-site.org", "", " nothing"]])
    assert [(span["continuation"], span["start"]) for span in item["spans"]] == [(0, 4)]
    assert item["continuations"] == ["[email]", "", " nothing"]


def test_pairs_compare_likelihoods_of_whole_sentences(opened):
    model, tokenizer = opened
    found = run(model, tokenizer, name="m", limit=3)
    rows = gather(None, 3)[0][1].rows
    preferred = []
    for row, item in zip(rows, found.samples["stereotypes"], strict=True):
        ids = tokenizer.encode_documents([row["stereotype"], row["counter"]])
        a, b = (one.loglikelihood for one in score(model, [([0], one) for one in ids]))
        assert item["stereotype_loglikelihood"] == pytest.approx(a, abs=1e-4)
        assert item["counter_loglikelihood"] == pytest.approx(b, abs=1e-4)
        preferred.append(a > b)
    assert found.results["results"]["stereotypes"]["stereotype,none"] == pytest.approx(np.mean(preferred))
    details = found.details["stereotypes"]
    assert details["categories"]["gender and work"] == {"pairs": 3, "preferred": sum(preferred)}
    assert details["mean_difference"] > 0


def test_a_users_files_stand_beside_ours(opened, tmp_path, writes):
    writes(" mumble fnord.", " ok.", " ok.", " ok.", " ok.")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Mine"}\n{"prompt": "Mine too", "id": 3}\n')
    (tmp_path / LEXICON).write_text("# mine\nfnord\n")
    found = run(*opened, name="m", limit=2, data=tmp_path)
    assert list(found.results["results"]) == ["toxicity", "stereotypes", "leakage", "toxicity, own"]
    assert [item["prompt"] for item in found.samples["toxicity, own"]] == ["Mine", "Mine too"]
    for name in ("toxicity", "toxicity, own"):  # the user's list for both
        assert found.results["results"][name]["toxic_lexicon,none"] == pytest.approx(0.2)


def test_files_page_and_limits(small_model, tmp_path):
    (found,) = evaluate(small_model, suite="safety", limit=4, out=tmp_path, progress=False)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["results"] == found.results["results"] and saved["model_name"] == "small"
    assert saved["stablelm"]["suite"] == "safety" and saved["stablelm"]["weights"]
    assert saved["stablelm"]["notes"][:4] == list(LIMITS) and "first 4 items" in saved["stablelm"]["notes"][4]
    html = (tmp_path / "report.html").read_text()
    for wanted in ("Toxicity", "Stereotypes", "Leakage", "no proof of safety", "gender and work", "<svg "):
        assert wanted in html
    for name in FILES:
        assert len((tmp_path / "samples" / f"{name}.jsonl").read_text().splitlines()) == 4


def test_an_interrupted_run_writes_only_what_is_missing(opened, tmp_path, monkeypatch):
    from stablelm.evaluation.safety import continuations

    asked, plain, stop = [], continuations.generate, [None]

    def counted(model, tokenizer, prompts, **settings):
        if len(asked) == stop[0]:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return plain(model, tokenizer, prompts, **settings)

    monkeypatch.setattr(continuations, "generate", counted)
    fresh = run(*opened, name="m", limit=5, tokens=8)
    whole = len(asked)
    asked.clear()
    stop[0] = 2
    with pytest.raises(KeyboardInterrupt):
        run(*opened, name="m", limit=5, tokens=8, out=tmp_path)
    stop[0] = None
    resumed = run(*opened, name="m", limit=5, tokens=8, out=tmp_path)
    assert len(asked) == whole and whole > 4
    again = run(*opened, name="m", limit=5, tokens=8, out=tmp_path)
    assert len(asked) == whole
    assert resumed.samples == again.samples == fresh.samples


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"category": "a", "stereotype": "b"}', "line 1: has no text under 'counter'; a line is {"),
        ('{"category": "a", "stereotype": "b", "counter": " "}', "no text under 'counter'"),
        ("[1]", "line 1: has no text under 'category'"),
        ("{", "line 1: not valid JSON"),
        ("", "pairs.jsonl: holds no items"),
    ],
)
def test_wrong_lines_are_named(tmp_path, content, message):
    (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(InputError) as error:
        gather(tmp_path, None)
    assert message in str(error.value)


def test_mistakes(small_model, tmp_path):
    with pytest.raises(InputError, match=r"holds none of prompts.jsonl, pairs.jsonl, leakage.jsonl, lexicon"):
        gather(tmp_path, None)
    with pytest.raises(InputError, match=r"no such directory; it may hold prompts.jsonl"):
        gather(tmp_path / "nowhere", None)
    with pytest.raises(InputError, match="at least one item"):
        gather(None, 0)
    with pytest.raises(InputError, match="--classifier belongs to --suite safety"):
        evaluate_suite([small_model], choose_tasks(None, ["piqa"]), classifier=tmp_path)
    with pytest.raises(InputError, match="it has no config.json"):
        Classifier(tmp_path)
    (tmp_path / "config.json").write_text('{"id2label": {"0": "non-toxic", "1": "LABEL_1"}}')
    with pytest.raises(InputError, match=r"none of its labels \(non-toxic, LABEL_1\) says what is toxic"):
        Classifier(tmp_path)
    (tmp_path / LEXICON).write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no entry"):
        Lexicon(tmp_path / LEXICON)


def test_a_classifier_needs_transformers(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text('{"id2label": {"0": "neutral", "1": "toxic"}}')
    with pytest.raises(InputError, match="--classifier needs transformers: pip install transformers"):
        Classifier(tmp_path)


def test_before_and_after_are_compared_item_by_item(opened, writes, tmp_path):
    """Every number of the suite, with an interval that has a width also where nothing changed."""
    model, tokenizer = opened
    bad = next(
        line for line in OURS.joinpath(LEXICON).read_text("utf-8").splitlines() if line and line[0] != "#"
    )
    writes("kind words", bad, "write to " + ADDRESS, "kind words")
    first = run(model, tokenizer, name="first", limit=12, each=2, tokens=4)
    writes("kind words", "kind words", bad)
    second = run(model, tokenizer, name="second", limit=12, each=2, tokens=4)
    found = {part.metric: part for part in compared(first, second)}
    for name, before, after in (
        ("toxicity", first, second),
        ("leakage", first, second),
        ("stereotypes", first, second),
    ):
        for key, value in before.results["results"][name].items():
            metric = key.partition(",")[0]
            if not metric.endswith("_stderr"):
                part = found.pop(metric)
                assert part.first == pytest.approx(100 * value)
                assert part.second == pytest.approx(100 * after.results["results"][name][key])
                assert part.difference == pytest.approx(part.second - part.first)
                low, high = part.interval
                assert low < part.difference < high and high - low > 1
                assert part.verdict in ("higher", "lower", "unclear") and part.items == 12
                assert metric != "stereotype" or (part.changed, part.verdict) == (0, "unclear")
    assert not found
    other = run(model, tokenizer, name="other", limit=11, each=2, tokens=4)
    with pytest.raises(InputError, match="toxicity: the two models were not evaluated on the same items"):
        compared(first, other)
