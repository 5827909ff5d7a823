"""`stablelm data …` beside `prepare`: what is there, whether it is whole, one part of one stage."""

import json


def test_data_inspect_verify_and_run(world, run, tmp_path):
    said = run("data", "inspect", world / "data")
    assert said.code == 0 and said.out.splitlines()[0].startswith(f"{world / 'data'}: fingerprint ")
    assert json.loads(run("data", "inspect", world / "data", "--json").out)["format"]
    said = run("data", "verify", world / "data", "--samples", 2)
    assert said.code == 0 and "files have the size and sha256" in said.out and "  document " in said.out
    changed = ("--set", f"out={tmp_path / 'd'}", "--set", f"work={tmp_path / 'w'}")
    for stage in ("plan", "read", "tokenize", "order", "layout", "assemble"):
        for part in ("1/2", "0/2"):
            said = run("data", "run", world / "recipe.yml", "--stage", stage, "--part", part, *changed)
            assert said.code == 0 and said.out.startswith(f"{stage} {part}: "), said.err
    assert not (tmp_path / "d").exists(), "publishing is prepare's"
    assert run("data", "prepare", world / "recipe.yml", *changed).code == 0
    one, other = (
        json.loads((p / "manifest.json").read_text())["files"] for p in (world / "data", tmp_path / "d")
    )
    assert one == other


def test_data_report(world, run, tmp_path):
    said = run("data", "report", world / "data", "--out", tmp_path / "new/page.html")
    assert (said.code, said.out) == (0, f"{tmp_path / 'new/page.html'}\n")
    assert (tmp_path / "new/page.html").read_text().startswith("<!doctype html>")
    for path, says in (
        (world / "recipe.yml", "not a prepared dataset"),
        (tmp_path / "nothing", "not a prepared dataset"),
        (world / "run", f"stablelm report {world / 'run'}"),
    ):
        said = run("data", "report", path)
        assert said.code == 2 and says in said.err and "Traceback" not in said.err
    said = run("data", "report", world / "data", "--out", tmp_path)
    assert said.code == 2 and str(tmp_path) in said.err and "Traceback" not in said.err
