"""GPU kernels on a machine without a GPU: right in Triton's interpreter, compiled for three
generations."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from stablelm.config import InputError, ModelConfig
from stablelm.config.run import run_config
from stablelm.model import StableLM
from stablelm.model.fused import choose_fused
from stablelm.training.parallel.apply import check

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux on x86 and CUDA"
)


def run(root, cache, *command, interpret):
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "TRITON_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )


@needs_triton
def test_they_are_right_in_the_interpreter(root, tmp_path):
    tests = "tests/kernels/gpu/interpreted.py"
    done = run(root, tmp_path, "-m", "pytest", "-p", "no:cacheprovider", tests, interpret=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed" in done.stdout


@needs_triton
def test_they_compile_for_a100_h100_and_b200(root, tmp_path):
    done = run(root, tmp_path, "tests/kernels/gpu/compiled.py", "80", "90", "100", interpret=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 18
    for name, _, shared, size in lines:
        assert int(size) > 1000, name
        assert int(shared) <= 49_152, name  # of the smallest of them


TINY = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16,
)  # fmt: skip


def test_wishes_that_cannot_be_fulfilled(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = StableLM(TINY)
    with pytest.raises(InputError, match="kernels: triton needs a GPU, the model is on cpu"):
        model.use_kernels("triton")
    with pytest.raises(InputError, match="kernels: 'tritn' does not exist.*triton"):
        model.use_kernels("tritn")
    assert model.use_kernels().name == "pytorch"
    if importlib.util.find_spec("triton") is not None:
        assert choose_fused(None, torch.device("cuda")).reason == "the default on CUDA: faster there"
    assert choose_fused("pytorch", torch.device("cuda")).name == "pytorch"
    config = run_config(
        {
            "model": TINY.model_dump(),
            "data": {"path": "x", "epochs": {"a": 1}},
            "kernels": "triton",
            "batch": {"sequence_length": 8},
        }
    )
    with pytest.raises(InputError, match="needs a GPU"):
        check(config, 1, "cpu")
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(InputError, match="parallel.tensor"):
            check(run_config(config.model_dump() | {"parallel": {"tensor": 2}}), 2, "cpu")


def test_a_device_that_has_them_but_not_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'stablelm\[gpu\]'"):
        StableLM(TINY).use_kernels("triton", torch.device("cuda"))
