"""llama.cpp runs our files, with the same ids, greedy text and quantised bytes; and we read its own.

`llama_cpp` is llama-cpp-python, built from its source distribution: `make test-all`, with a compiler."""

import ctypes
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from stablelm.auto import PretrainedStableLM
from stablelm.config import preset
from stablelm.interchange.gguf import load_gguf, save_gguf
from stablelm.interchange.gguf_header import Header
from stablelm.interchange.gguf_types import quantize, stored_bytes
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer, train_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.oracle

SMALL = dict(
    hidden_size=256, num_hidden_layers=3, num_attention_heads=4, intermediate_size=320, bos_token_id=0,
    eos_token_id=0,
)  # fmt: skip
FAMILY = {
    "stablelm-3b-4e1t": {},
    "stablelm-zephyr-3b": {"partial_rotary_factor": 0.5},
    "stable-code-3b": {},
    "stablelm-2-1_6b": {},
    "stablelm-2-12b": {"num_key_value_heads": 2},
    "stablelm-2-12b with norm biases": {"num_key_value_heads": 1, "use_norm_bias": True},
}


def opened(path: Path, context: int = 256, every_token: bool = False) -> "llama_cpp.Llama":
    """A GGUF file in llama.cpp, without the kernels for repacked weights: where a virtual machine has AMX,
    version 0.3.36 ends in a segmentation fault with them."""
    plain = llama_cpp.llama_model_default_params

    def parameters() -> "llama_cpp.llama_model_params":
        found = plain()
        found.use_extra_bufts = False
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_cpp.llama_cpp.llama_model_default_params", parameters)
        return llama_cpp.Llama(
            str(path), n_ctx=context, n_threads=1, n_threads_batch=1, verbose=False, seed=1,
            logits_all=every_token,
        )  # fmt: skip


def logits(llama, ids: list[int]) -> np.ndarray:
    """Logits [V] after the last id."""
    llama.reset()
    llama.eval(ids)
    pointer = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(pointer, (llama.n_vocab(),)).copy()


def shaken(name: str, vocab_size: int, **changes) -> StableLM:
    """A member of the family, small, with random weights; norms and biases too are not what they start as."""
    model = StableLM(preset(name.split(" ")[0], vocab_size=vocab_size, **{**SMALL, **changes}), seed=4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif "embed" in key or "lm_head" in key or "proj" in key:
                parameter.mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def texts(shared) -> list[str]:
    found = [path.read_text() for path in sorted((shared / "data/corpus/raw/tree").rglob("*.txt"))]
    return [*found, (Path(__file__).parent / "test_llama_cpp.py").read_text()]


@pytest.fixture(scope="module")
def neox(shared) -> Tokenizer:
    return Tokenizer.from_file(shared / "data/neox-tokenizer")


STRINGS = [
    "", " ", "  ", "\n", "\n\n  \n   \n", "a  b", "x   ", "   x", "it's they'LL don't",
    "def f(x):\n    if x:\n\t\treturn 'a'  # two\n", "<|endoftext|>", "a<|endoftext|>  <|padding|>b",
    "3 33 333 3333 33.33 ½ ² ①", "日本語のテキスト 한국어 العربية हिन्दी", "🚀👩‍👩‍👧 ☃",
    "\u00a0x\u2003y\u3000z\x1c\x85",
    "naïve café Ångström", "tab\tseparated\t\tvalues \r\n", "﻿bom", "\x00\x01\x7f", "`````...!!!??", "ꙮ𐍈ß",
    *(" " * n + end for n in (23, 24, 25, 26, 48, 49, 50, 73) for end in ("", "x")),
]  # fmt: skip


def assert_same_ids(llama, tokenizer: Tokenizer, text: str) -> None:
    prompt = llama.tokenize(text.encode(), add_bos=True, special=True)
    assert prompt == tokenizer.encode(text), text[:80]
    document = llama.tokenize(text.encode(), add_bos=False, special=False)
    assert document == tokenizer.encode_documents([text])[0], text[:80]


def test_ids_of_text_code_and_runs_of_spaces(tmp_path, neox, texts) -> None:
    config = preset(
        "stablelm-1m", vocab_size=50_304, num_hidden_layers=1, hidden_size=32, num_attention_heads=1
    )
    save_gguf(StableLM(config), neox, tmp_path / "x.gguf", dtype="q8_0")
    llama = opened(tmp_path / "x.gguf", 16)
    for text in (*STRINGS, *texts):
        assert_same_ids(llama, neox, text)
    pick = random.Random(3)
    for _ in range(300):  # pieces in any order, at any joint
        assert_same_ids(llama, neox, "".join(pick.choices(STRINGS, k=5)))
    assert llama.token_eos() == 0
    assert llama.n_vocab() == 50_304


def test_text_that_is_not_nfc_is_left_so_by_llama_cpp(tmp_path, neox) -> None:
    """What the documentation says about it; composing the text first gives the same ids."""
    config = preset(
        "stablelm-1m", vocab_size=50_304, num_hidden_layers=1, hidden_size=32, num_attention_heads=1
    )
    save_gguf(StableLM(config), neox, tmp_path / "x.gguf", dtype="q8_0")
    llama = opened(tmp_path / "x.gguf", 16)
    apart = unicodedata.normalize("NFD", "naïve café")
    assert llama.tokenize(apart.encode(), add_bos=False) != neox.encode(apart)
    assert_same_ids(llama, neox, unicodedata.normalize("NFC", apart))


def test_ids_of_a_tokenizer_like_stablelm_2s(tmp_path, texts) -> None:
    tokenizer = arcade_like(texts)
    config = preset("stablelm-1m", vocab_size=640, num_hidden_layers=1, hidden_size=32, num_attention_heads=1)
    save_gguf(StableLM(config), tokenizer, tmp_path / "x.gguf")
    llama = opened(tmp_path / "x.gguf", 16)
    for text in (*STRINGS, *texts):
        assert_same_ids(llama, tokenizer, text)


def arcade_like(texts: list[str]) -> Tokenizer:
    """A small byte-level BPE cut as arcade100k's, with its kind of special tokens at the end."""
    import tokenizers as t

    from stablelm.interchange.gguf_tokenizer import _STABLELM_2

    encoder = t.Tokenizer(t.models.BPE())
    encoder.pre_tokenizer = t.pre_tokenizers.Sequence(
        [
            t.pre_tokenizers.Split(t.Regex(_STABLELM_2), "removed", invert=True),
            t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.decoder = t.decoders.ByteLevel()
    alphabet = sorted(t.pre_tokenizers.ByteLevel.alphabet())
    encoder.train_from_iterator(texts, t.trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    encoder.add_special_tokens(["<|endoftext|>", "<|reg_extra|>"])
    return Tokenizer(encoder.to_str().encode(), "arcade-like")


@pytest.mark.parametrize("member", FAMILY)
def test_the_family_continues_a_prompt_with_the_same_tokens(tmp_path, member) -> None:
    model = shaken(member, 200, **FAMILY[member])
    save_gguf(model, None, tmp_path / "x.gguf")
    llama = opened(tmp_path / "x.gguf")
    for seed in range(3):
        ids = torch.randint(2, 200, (17,), generator=torch.Generator().manual_seed(seed)).tolist()
        compared = 0
        for _ in range(40):
            with torch.no_grad():
                ours = model(torch.tensor([ids]))[0, -1].numpy()
            theirs = logits(llama, ids)
            error = np.abs(ours - theirs).max()
            assert error < 2e-3 * np.abs(ours).max(), member
            second, first = np.sort(ours)[-2:]
            if first - second > 2 * error:  # else either answer is right
                assert ours.argmax() == theirs.argmax()
                compared += 1
            ids.append(int(ours.argmax()))
        assert compared >= 35


@pytest.fixture(scope="module")
def trained(texts) -> tuple[StableLM, Tokenizer]:
    """A small model that has learnt something of one story."""
    tokenizer = train_tokenizer(texts, 500)
    ids = torch.tensor(tokenizer.encode_documents([texts[0]])[0])
    model = StableLM(preset("stablelm-1m", vocab_size=512, num_hidden_layers=2, hidden_size=128), seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        starts = torch.randint(0, len(ids) - 65, (8,), generator=generator)
        rows = torch.stack([ids[at : at + 65] for at in starts])
        loss = model(rows[:, :-1], labels=rows[:, 1:]) / rows[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 4.5  # ln 512 = 6.2 at the start
    return model.eval(), tokenizer


PROMPTS = ["I am a rather elderly man", "The  clerk", "\n", "he said to me, ", "In the morning of the"]


def test_a_trained_model_writes_the_same_text(tmp_path, trained) -> None:
    model, tokenizer = trained
    save_gguf(model, tokenizer, tmp_path / "x.gguf")
    llama = opened(tmp_path / "x.gguf")
    ours, words = load_gguf(tmp_path / "x.gguf", build=PretrainedStableLM)
    for prompt in PROMPTS:
        batch = words(prompt, return_tensors="pt")
        expected = ours.generate(**batch, max_new_tokens=60, do_sample=False)[0].tolist()
        ids = llama.tokenize(prompt.encode(), add_bos=True, special=True)
        assert ids == batch.input_ids[0].tolist()
        llama.reset()
        for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            if token == llama.token_eos() or len(ids) == len(expected):
                break
            ids.append(token)
        assert ids == [i for i in expected if i != words.eos_id]
        text = llama.detokenize(ids, special=True)
        assert text.decode(errors="replace") == words.decode(ids)


def quantized_by_llama(source: Path, target: Path, kind: int) -> Header:
    """What `llama-quantize SOURCE TARGET TYPE` writes."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = kind, 1
    assert (
        llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
        == 0
    )
    return Header(target)


@pytest.mark.parametrize(("dtype", "kind"), [("q8_0", 7), ("q4_0", 2), ("f16", 1), ("bf16", 32)])
@pytest.mark.parametrize("member", ["stablelm-2-1_6b", "stablelm-2-12b", "no multiple of 256"])
def test_files_equal_those_of_llama_quantize(tmp_path, trained, member, dtype, kind) -> None:
    """Tensor by tensor: the same type, the same bytes, the 6-bit output matrix of a 4-bit file included."""
    if member.startswith("stablelm"):
        model, words = shaken(member, 512, num_key_value_heads=2), trained[1]
    else:
        model, words = trained
    save_gguf(model, words, tmp_path / "f32.gguf")
    save_gguf(model, words, tmp_path / "ours.gguf", dtype=dtype)
    theirs = quantized_by_llama(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", kind)
    ours = Header(tmp_path / "ours.gguf")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, mine in ours.tensors.items():
        other = theirs.tensors[name]
        assert (mine.type, mine.shape) == (other.type, other.shape), name
        bytes_ = [h.data[t.offset : t.offset + t.nbytes] for h, t in ((ours, mine), (theirs, other))]
        assert np.array_equal(*bytes_), name
    wanted = {"q8_0": "Q8_0", "q4_0": "Q6_K" if member.startswith("stablelm") else "Q8_0"}
    assert ours.tensors["output.weight"].type == wanted.get(dtype, dtype.upper())
    for key in ("general.file_type", "general.quantization_version"):
        assert ours.integer(key) == theirs.integer(key)


def test_blocks_equal_those_of_ggml() -> None:
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    quantizer = library.ggml_quantize_chunk
    quantizer.restype = ctypes.c_size_t
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    quantizer.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
    numbers = np.random.default_rng(1)
    heavy = numbers.standard_t(1.5, (64, 1024)).astype(np.float32)
    holes = np.where(numbers.random(heavy.shape) < 0.6, np.float32(0), heavy)
    holes[3], holes[:, 256:512] = 0, 1e-17
    for values in (heavy, holes, heavy * np.float32(1e-6), np.round(heavy * 8) / np.float32(8)):
        for kind, number in (("Q8_0", 8), ("Q4_0", 2), ("Q6_K", 14)):
            expected = np.zeros(stored_bytes(values.shape, kind), np.uint8)
            assert (
                quantizer(number, values.ctypes.data, expected.ctypes.data, 0, *values.shape, None)
                == expected.size
            )
            assert np.array_equal(quantize(values, kind), expected), kind


@pytest.mark.parametrize(("kind", "name"), [(15, "Q4_K_M"), (2, "Q4_0"), (18, "Q6_K"), (7, "Q8_0")])
def test_we_run_what_llama_cpp_quantised(tmp_path, trained, kind, name) -> None:
    """Q4_K and Q6_K, which we do not write: logits as llama.cpp's on the same file, whose arithmetic rounds
    activations to 8 bits."""
    model = shaken("stablelm-2-1_6b", 512, intermediate_size=512)
    save_gguf(model, trained[1], tmp_path / "f32.gguf")
    header = quantized_by_llama(tmp_path / "f32.gguf", tmp_path / "x.gguf", kind)
    assert {"Q4_K_M": {"Q4_K", "Q6_K"}, "Q6_K": {"Q6_K"}}.get(name, {name}) <= {
        tensor.type for tensor in header.tensors.values()
    }
    again, words = load_gguf(tmp_path / "x.gguf")
    assert again.config.use_qkv_bias
    assert words.sha256 == trained[1].sha256
    llama = opened(tmp_path / "x.gguf")
    ids = torch.randint(2, 512, (40,), generator=torch.Generator().manual_seed(9)).tolist()
    with torch.no_grad():
        full, ours = model(torch.tensor([ids]))[0, -1], again(torch.tensor([ids]))[0, -1]
    theirs = torch.from_numpy(logits(llama, ids))
    spread = full.std()
    assert (ours - theirs).abs().max() < 0.15 * spread
    assert (ours - theirs).abs().mean() < (full - ours).abs().mean() * (0.5 if "4" in name else 2)
