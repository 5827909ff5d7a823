"""`stablelm benchmark`: its lines, its JSON, and a context that is too small."""

import json
import re

import stablelm


def test_lines_and_json(world, run):
    line = ("benchmark", world / "model", "--prompt-tokens", 40, "--new-tokens", 8, "--rounds", 1)
    said = run(*line)
    assert (said.code, said.err) == (0, "")
    for pattern in (
        r"^\S+: [\d,]+ parameters, [\d.]+(e-\d+)? GB, float32, on ", r"\nprefill: 40 tokens in ",
        r"\ndecode: 8 tokens in .* tokens/s; reads .* GB/s, a copy ", r"\npeak memory: [\d.]+ GB\n",
        r"\nattention: sdpa: ", r"\nin decoding: \w+ \(head dimension 16\)\n", r"\nweights: PyTorch",
    ):  # fmt: skip
        assert re.search(pattern, said.out), pattern
    told = json.loads(run(*line, "--json", "--dtype", "bf16").out)
    model, _ = stablelm.load(world / "model")
    assert told["weight_bytes"] == 2 * model.num_parameters() and told["dtype"] == "bfloat16"
    rate = told["decode_tokens_per_second"]
    assert told["decode_bytes_per_second"] == rate * told["bytes_per_token"] > 0
    assert told["copy_bytes_per_second"] > 1e8 and told["prefill_tokens_per_second"] > 0
    packed = json.loads(run(*line, "--json", "--quantize", 8).out)
    assert packed["weight_bytes"] not in (told["weight_bytes"], 2 * told["weight_bytes"])
    assert "dense products" not in packed["kernels"]["weights"]


def test_mistakes(world, run):
    said = run("benchmark", world / "model")
    assert (said.code, said.out) == (2, "")
    assert "make 576, and the model's context is 128. Lower one" in said.err
    assert run("benchmark", world / "model", "--quantize", 3).code == 2
