"""`stablelm convert` and what other verbs make of the files it writes."""

import json


def test_every_verb_takes_what_convert_writes(world, run, tmp_path):
    for out, options in {
        "m.gguf": ("--to", "gguf", "--dtype", "fp32"),
        "neox": ("--to", "neox", "--width", 2),
        "old": ("--to", "huggingface-epoch"),
    }.items():
        said = run("convert", world / "model", tmp_path / out, *options, "--verify")
        assert said.code == 0, said.err
        assert "verified: bit-equal" in said.out and said.err == ""
        facts = json.loads(run("inspect", tmp_path / out, "--verify", "--kernels", "--json").out)
        assert facts["parameters"] == 45_376 and facts["kernels"]["device"]
        told = [
            run("generate", path, "the", "--temperature", 0, "--max-new-tokens", 8, "--quiet").out
            for path in (world / "model", tmp_path / out)
        ]
        assert told[0] == told[1] != ""
        assert run("export", tmp_path / out, tmp_path / f"{out}-hf").code == 0


def test_mistakes(world, run, tmp_path):
    for options, said in (
        (("--to", "ggml"), "did you mean 'gguf'"),
        (("--to", "gguf", "--width", 2), "--width and --mlp-names are for --to neox"),
        (("--to", "neox", "--width", 7), "7"),
        ((), "--to"),
    ):
        failed = run("convert", world / "model", tmp_path / "out", *options)
        assert failed.code == 2 and said in failed.err and "Traceback" not in failed.err
        assert not (tmp_path / "out").exists()
    assert run("convert", tmp_path / "gone", tmp_path / "out", "--to", "gguf").code == 2
