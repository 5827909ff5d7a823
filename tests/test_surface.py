"""The names that users import, and their signatures: what changes here changes somebody's program."""

import inspect
import subprocess
import sys

import pytest

import stablelm

SAMPLING = (
    "max_new_tokens=64, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=None, "
    "stop=(), sampling=None"
)
HUB = "trust_remote_code=False, revision=None, token=None, local_files_only=False, cache_dir=None"
SIGNATURES = {
    "AutoModelForCausalLM.from_pretrained":
        "path, *, torch_dtype=None, dtype=None, device_map=None, attn_implementation=None, "
        f"use_flash_attention_2=False, {HUB}",
    "AutoTokenizer.from_pretrained": f"path, *, {HUB}",
    "load": "path, dtype=None, device='cpu', quantize=None, group=64, adapters=()",
    "generate": f"model, tokenizer, prompt, *, {SAMPLING}, lookup=False, cache=None, beams=1, "
        "length_penalty=1.0, best_of=1, window=None, sinks=4, prefix=None",
    "evaluate": "models, *, suite=None, tasks=(), data=None, limit=None, out=None, dtype=None, "
        "device='auto', progress=True, classifier=None, adapters=()",
    "train": "config, *, resume=False, force_data=False, console=None, checks='none', profile=0",
    "StableLM": "config, seed=1234",
    "StableLM.forward": "self, input_ids, attention_mask=None, cache=None, labels=None, document_ids=None, "
    "positions=None, places=None",
    "ModelConfig": "*, vocab_size=50304, hidden_size=2560, intermediate_size=6912, num_hidden_layers=32, "
        "num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096, "
        "partial_rotary_factor=0.25, rope_theta=10000.0, layer_norm_eps=1e-05, use_qkv_bias=False, "
        "qk_layernorm=False, use_parallel_residual=False, use_norm_bias=True, initializer_range=0.02, "
        "bos_token_id=0, eos_token_id=0",
}  # fmt: skip
NAMES = [
    "AutoModelForCausalLM", "AutoTokenizer", "InputError", "ModelConfig", "RunConfig", "StableLM", "evaluate",
    "generate", "load", "train",
]  # fmt: skip


def spelled(function) -> str:
    """A signature without its annotations."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))[1:-1]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    thing = stablelm
    for part in name.split("."):
        thing = getattr(thing, part)
    assert spelled(thing) == SIGNATURES[name]


def test_names():
    assert stablelm.__all__ == NAMES
    public = {name for name in dir(stablelm) if not name.startswith("_")}
    assert set(NAMES) <= public
    for name in NAMES:
        assert getattr(stablelm, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'stablelm' has no attribute 'chat'"):
        stablelm.chat  # noqa: B018 (the access is the test)
    with pytest.raises(ImportError):
        from stablelm import chat  # type: ignore[attr-defined]  # noqa: F401


def test_mistakes_are_value_errors():
    assert issubclass(stablelm.InputError, ValueError)


@pytest.mark.parametrize(
    "code",
    [
        "import stablelm; dir(stablelm); stablelm.__version__",
        "from stablelm import ModelConfig, RunConfig; ModelConfig().num_parameters",
        "sys.argv[1:] = ['--help']; from stablelm.cli.main import main; end(main)",
        "sys.argv[1:] = ['generate', '--help']; from stablelm.cli.main import main; end(main)",
        "sys.argv[1:] = ['train', 'nowhere.yml']; from stablelm.cli.main import main; end(main)",
        "sys.argv[1:] = ['--version']; from stablelm.cli.main import main; end(main)",
    ],
)
def test_what_needs_no_pytorch_does_not_wait_for_it(code, tmp_path):
    program = f"""
import sys
def end(main):
    try:
        main()
    except SystemExit:
        pass
{code}
heavy = {{"torch", "transformers", "pyarrow", "zstandard", "tensorboard", "safetensors", "tokenizers"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
