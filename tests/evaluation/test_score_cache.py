"""Scores on the disk: kept, found again, never those of another model."""

import pytest
import torch

from stablelm.config import InputError, ModelConfig
from stablelm.evaluation.score_cache import ScoreCache
from stablelm.evaluation.scoring import Score
from stablelm.model import StableLM
from stablelm.model.fingerprint import weights_hash

PAIR, OTHER = ((1, 2), (3,)), ((1,), (2, 3))
CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
    max_position_embeddings=16,
)  # fmt: skip


def test_found_again(tmp_path):
    path = tmp_path / "a" / "scores.jsonl"
    ScoreCache(path, "m").add({PAIR: Score(-1.5000000001, True)})
    again = ScoreCache(path, "m")
    assert again[PAIR] == Score(-1.5000000001, True) and PAIR in again
    assert OTHER not in again  # the same ids, cut elsewhere


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "scores.jsonl"
    ScoreCache(path, "m").add({PAIR: Score(-1.0, False), OTHER: Score(-2.0, False)})
    content = path.read_bytes()
    for cut in range(len(content.splitlines(True)[0]) + 1, len(content)):
        path.write_bytes(content[:cut])
        cache = ScoreCache(path, "m")
        assert len(cache) == content[:cut].count(b"\n") - 1
        cache.add({OTHER: Score(-2.0, False)})
        assert ScoreCache(path, "m")[OTHER] == Score(-2.0, False)


def test_a_file_torn_in_its_first_line_starts_anew(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"mod')
    ScoreCache(path, "m").add({PAIR: Score(-1.0, False)})
    assert PAIR in ScoreCache(path, "m")


def test_scores_of_another_model_are_refused(tmp_path):
    path = tmp_path / "scores.jsonl"
    ScoreCache(path, "m")
    with pytest.raises(InputError, match="another model or precision"):
        ScoreCache(path, "n")


@pytest.mark.parametrize("line", ["[]", "nonsense", "[1]", '{"a": 1}', '["k", "x", true]'])
def test_a_line_that_is_no_score_is_named(tmp_path, line):
    path = tmp_path / "scores.jsonl"
    ScoreCache(path, "m").add({PAIR: Score(-1.0, False)})
    with open(path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="line 3: not a file of scores"):
        ScoreCache(path, "m")


def test_the_hash_changes_with_a_weight_a_name_and_the_arithmetic():
    model = StableLM(CONFIG, seed=1)
    before = weights_hash(model)
    assert before == weights_hash(StableLM(CONFIG, seed=1)) != weights_hash(StableLM(CONFIG, seed=2))
    model.compute_dtype = torch.bfloat16
    assert weights_hash(model) != before
    model.compute_dtype = None
    with torch.no_grad():
        model.lm_head.weight[-1, -1] += 1e-7
        model.lm_head.weight[-1, -1] *= 1.01
    assert weights_hash(model) != before
    assert weights_hash(StableLM(CONFIG, seed=1).to(torch.bfloat16)) != before
