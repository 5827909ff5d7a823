"""`convert`: between all formats, bit-equal where nothing is rounded, one message where it cannot be."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.conversion import Conversion, convert
from stablelm.interchange.inspection import describe
from stablelm.model import StableLM
from stablelm.storage import read_json
from stablelm.tokenizer import Tokenizer, train_tokenizer

SMALL = dict(
    vocab_size=384, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    bos_token_id=0, eos_token_id=0,
)  # fmt: skip
FAMILY = {
    "stablelm-3b-4e1t": {},
    "stablelm-zephyr-3b": {},
    "stable-code-3b": {},
    "stablelm-2-1_6b": {},
    "stablelm-2-12b": {"num_key_value_heads": 2},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat, and the other cat sat there too " * 2], 300)


@pytest.fixture(params=FAMILY)
def model(request) -> StableLM:
    return made(request.param)


def made(name: str, dtype: torch.dtype = torch.bfloat16) -> StableLM:
    model = StableLM(preset(name, **SMALL, **FAMILY[name]), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def lines(source: Path, out: Path, to: str, **more) -> list[str]:
    return list(convert(source, out, Conversion(to, **more)))


def same(one: StableLM, other: StableLM) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys() and one.config == other.config
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_all_the_way_round_is_bit_equal(model: StableLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_pretrained(model, tokenizer, tmp_path / "hf")
    road = [
        ("gguf", {}),
        ("huggingface", {}),
        ("gguf", {"dtype": "fp32"}),
        ("huggingface", {"dtype": "bf16"}),
    ]
    if not model.config.qk_layernorm:  # for which GPT-NeoX has no place
        road[1:1] = [("neox", {"width": width}) for width in (1, 2, 4)]
    if not (model.config.use_parallel_residual or model.config.qk_layernorm):
        road.append(("huggingface-epoch", {}))
    at = tmp_path / "hf"
    for number, (to, options) in enumerate(road):
        out = tmp_path / f"{number}-{to}"
        said = lines(at, out, to, verify=True, **options)
        assert any(line.startswith("verified: bit-equal") for line in said), said
        assert any("taken: " in line for line in said) == (at.name.endswith("neox"))
        assert describe(out, verify=True)["parameters"] == model.num_parameters()
        at = out
    again, words = open_path(at)
    same(again, model)
    assert words is not None and words.vocab == tokenizer.vocab


def test_quantised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_pretrained(made("stablelm-3b-4e1t", torch.float32), tokenizer, tmp_path / "hf")
    for kind in ("q8_0", "q4_0"):
        said = lines(tmp_path / "hf", tmp_path / f"{kind}.gguf", "gguf", dtype=kind, verify=True)
        assert f", {kind}, as gguf" in said[0] and "quantised, its logits differ by up to" in said[-1]
        assert describe(tmp_path / f"{kind}.gguf")["parameters"]


def test_the_epoch_spelling_and_the_card(tokenizer: Tokenizer, tmp_path: Path) -> None:
    card = "---\nlicense: cc-by-sa-4.0\n---\n# x\n"
    save_pretrained(made("stablelm-3b-4e1t"), tokenizer, tmp_path / "hf", files={"README.md": card})
    lines(tmp_path / "hf", tmp_path / "old", "huggingface-epoch")
    config = read_json(tmp_path / "old" / "config.json")
    assert (config["model_type"], config["norm_eps"], config["rope_pct"]) == ("stablelm_epoch", 1e-5, 0.25)
    text = (tmp_path / "old" / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in text and "not trained further" in text
    lines(tmp_path / "old", tmp_path / "m.gguf", "gguf")
    assert "cc-by-sa-4.0" in (tmp_path / "m.gguf").read_bytes()[:5000].decode("latin-1")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Conversion("gguff"), "not a format; did you mean 'gguf'"),
        (Conversion("huggingface", dtype="q8_0"), "only gguf is quantised"),
        (Conversion("neox", dtype="int8"), "neox is written in fp32, bf16, fp16"),
        (Conversion("gguf", width=2), "--width and --mlp-names are for --to neox"),
        (Conversion("gguf", mlp_names="legacy"), "--width and --mlp-names are for --to neox"),
        (Conversion("gguf", qkv_layout="grouped"), "are for GPT-NeoX checkpoints; this is none"),
        (Conversion("neox", width=3), "3"),
        (Conversion("neox", mlp_names="old"), "use new or legacy"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, wanted: Conversion, said: str) -> None:
    save_pretrained(made("stablelm-3b-4e1t"), None, tmp_path / "hf")
    with pytest.raises(InputError, match=said):
        list(convert(tmp_path / "hf", tmp_path / "out", wanted))
    assert not (tmp_path / "out").exists()


def test_what_has_no_place_in_the_other_format(tmp_path: Path) -> None:
    save_pretrained(made("stablelm-2-12b"), None, tmp_path / "hf")
    for to, said in (("neox", "qk_layernorm"), ("huggingface-epoch", "no key for qk_layernorm")):
        with pytest.raises(InputError, match=said):
            lines(tmp_path / "hf", tmp_path / "out", to)
        assert not (tmp_path / "out").exists()


def test_a_pickle_only_when_allowed(tmp_path: Path) -> None:
    model = made("stablelm-2-1_6b")
    save_pretrained(model, None, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "hf" / "pytorch_model.bin")
    wanted = Conversion("huggingface", verify=True)
    with pytest.raises(InputError, match="--allow-pickle"):
        list(convert(tmp_path / "hf", tmp_path / "out", wanted))
    said = list(convert(tmp_path / "hf", tmp_path / "out", replace(wanted, allow_pickle=True)))
    assert "bit-equal" in said[-1] and "no tokenizer.json" in said[0]
    same(open_path(tmp_path / "out")[0], model)


def test_an_output_that_is_there(tmp_path: Path) -> None:
    save_pretrained(made("stablelm-3b-4e1t"), None, tmp_path / "hf")
    (tmp_path / "out").write_text("mine")
    for to in ("huggingface", "huggingface-epoch", "neox", "gguf"):
        with pytest.raises(InputError, match="already exists"):
            lines(tmp_path / "hf", tmp_path / "out", to)
    assert (tmp_path / "out").read_text() == "mine"
