"""A classifier in a local directory as a scorer of the safety suite, beside transformers asked directly."""

import json

import pytest
import torch

from stablelm.config import InputError
from stablelm.evaluation.safety.toxicity import Classifier

TEXTS = ["a kind word", "an angry word, and another", "", "word " * 300, "ünïcode"] * 5
WORDS = ["[PAD]", "[UNK]", "a", "an", "kind", "angry", "word", "and", "another", ","]


def saved(folder, labels, kind, safetensors=True):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, problem_type=kind,
        id2label=dict(enumerate(labels)), label2id={name: n for n, name in enumerate(labels)},
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(60)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(folder)
    if not safetensors:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model, words


@pytest.mark.parametrize(
    ("labels", "kind", "columns"),
    [
        (["neutral", "toxic"], "single_label_classification", [1]),
        (["not_hate", "hate", "offensive"], None, [1, 2]),
        (["toxic", "obscene", "severe_toxic"], "multi_label_classification", [0, 2]),
    ],
)
def test_its_numbers_are_those_of_transformers(tmp_path, labels, kind, columns):
    model, words = saved(tmp_path, labels, kind)
    found = Classifier(tmp_path)(TEXTS)
    expected = []
    for text in TEXTS:
        ids = words.encode(text).ids[:64] or [0]
        with torch.no_grad():
            mask = torch.tensor([[int(bool(text)) for _ in ids]])
            logits = model(input_ids=torch.tensor([ids]), attention_mask=mask).logits[0]
        shares = logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(-1)
        expected.append(float(shares[columns].max()))
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found) - min(found) > 0.05


def test_pickles_and_code_are_refused(tmp_path):
    saved(tmp_path, ["neutral", "toxic"], None, safetensors=False)
    with pytest.raises(InputError, match="cannot be opened as a classifier"):
        Classifier(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    saved(own, ["neutral", "toxic"], None)
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoModelForSequenceClassification": "code.Ours"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "code.py").write_text("raise SystemExit('this code ran')\n")
    with pytest.raises(InputError, match="cannot be opened as a classifier"):
        Classifier(own)
