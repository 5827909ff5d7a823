"""The quick start: the text that is already on this machine becomes a small trained model that writes.

Each stage writes its own output whole or not at all, so an interrupted demo continues where it was. How many
steps fit the time is measured before step 1, stored in `demo.json`, and never changed afterwards; `--steps`
fixes them instead. The subset of the text is sized so that its epochs complete exactly: prose is read 4 times
and code once.

    OUT/corpus  OUT/tokenizer  OUT/data  OUT/demo.json  OUT/run  OUT/results.json  OUT/model
    OUT/report.html"""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError, RunConfig, preset
from stablelm.config.recipe import DataRecipe
from stablelm.config.run import run_config
from stablelm.config.schema import validate
from stablelm.data import Dataset
from stablelm.data.preparation import prepare, work_directory
from stablelm.data.sources import read_texts
from stablelm.demo.corpus import write_corpus
from stablelm.demo.results import demo_page, results_of, summary_lines
from stablelm.interchange.export import export
from stablelm.interchange.native import finished_checkpoints
from stablelm.model.bfloat16_products import WIDENED
from stablelm.planning import matmul_peak
from stablelm.storage import directory_lock, read_json, write_json
from stablelm.tokenizer.training import train_tokenizer
from stablelm.training import Trainer, train
from stablelm.training.console import Console, make_console

VOCABULARY, WINDOW, BATCH = 8192, 256, 8
EPOCHS = {"prose": 4, "code": 1}
PROSE_SHARE = (
    0.6  # of the tokens trained on; prose is what gzip is compared on, code what a reader recognises
)
MINUTES, FEWEST_STEPS, TIMED_STEPS = 3.0, 8, 12
HELD_OUT = 0.06
CARD = ("name=StableLM demo", "language=[en]", "licence=other", "licence_name=psf-2.0",
        "licence_link=https://docs.python.org/3/license.html")  # fmt: skip


def run_demo(
    out: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """Runs the whole demo in `out` and returns the exported model's directory.

    `minutes` aims at that much training (default 3); `steps` trains exactly that many. Raises `InputError`
    for both at once, for an `out` that already holds a demo without `resume`, or when this Python has too
    little text."""
    if minutes is not None and steps is not None:
        raise InputError("--minutes and --steps are two ways to say how long to train; give one.")
    if (minutes is not None and not 0 < minutes < 1e4) or (steps is not None and steps < 1):
        raise InputError("--minutes must be above 0 (0.5 is half a minute), --steps at least 1.")
    if not resume and out.exists() and any(out.iterdir()):
        raise InputError(
            f"{out}: is not empty. Continue the demo there with --resume, or choose another --out."
        )
    console = console or make_console()
    with directory_lock(out):
        _prepare(out, console)
        config = run_config(_fix_run(out, minutes, steps, console), str(out / "demo.json"))
        train(config, resume=bool(finished_checkpoints(out / "run")), console=console)
        if not (out / "model" / "config.json").is_file():
            list(export(out / "run", out / "model", torch.float32, CARD))
        if not (out / "results.json").is_file():
            console.message("Evaluating on all held-out text, and compressing it with gzip and xz")
            write_json(
                out / "results.json", results_of(out / "model", out / "data", WINDOW, config.precision)
            )
    results = read_json(out / "results.json")
    demo_page(out / "run", results).write(out / "report.html")
    for line in summary_lines(out, results):
        console.message(line)
    return out / "model"


def _prepare(out: Path, console: Console) -> None:
    """Corpus, tokenizer and token files; what is there already is kept."""
    console.message("Collecting this Python's own library: its documentation as prose, its modules as code")
    summary = write_corpus(out / "corpus")
    console.message(
        f"{summary.prose.bytes:,} bytes of prose, {summary.code.bytes:,} of code ({summary.licence})"
    )
    if (out / "data").is_dir():
        return
    recipe = validate(DataRecipe, _recipe(out), "demo")
    if not (out / "tokenizer").is_dir():
        console.message(f"Training a tokenizer of {VOCABULARY:,} ids")
        texts = (text for source in recipe.sources for text in read_texts(source))
        train_tokenizer(texts, VOCABULARY, out / "tokenizer")
    console.message("Tokenising, holding out whole files, shuffling documents")
    prepare(recipe)
    shutil.rmtree(work_directory(recipe), ignore_errors=True)  # the corpus is there to read again
    for line in Dataset(out / "data").describe():
        console.message(line)


def _recipe(out: Path) -> dict[str, Any]:
    sources = [
        {"name": name, "paths": [str(out / "corpus" / name)], "format": "text", "licence": "PSF-2.0"}
        for name in EPOCHS
    ]
    return {
        "out": str(out / "data"),
        "tokenizer": str(out / "tokenizer"),
        "sources": sources,
        "held_out": HELD_OUT,
    }


def _fix_run(out: Path, minutes: float | None, steps: int | None, console: Console) -> dict[str, Any]:
    """The run's configuration: as stored, or fixed now from what was asked and stored before step 1."""
    path = out / "demo.json"
    if path.is_file():
        stored: dict[str, Any] = read_json(path)
        for name, given in (("minutes", minutes), ("steps", steps)):
            if given is not None and given != stored["asked"].get(name):
                raise InputError(
                    f"{out}: this demo was started for {stored['run']['steps']} steps; --{name} cannot "
                    "change that. "
                    "Resume without it, or choose another --out."
                )
        return dict(stored["run"])
    # Where bf16 products are made in float32, bf16 is never faster, whatever a noisy measurement says.
    fast = not WIDENED and matmul_peak("cpu", torch.bfloat16) > matmul_peak("cpu", torch.float32)
    precision = "bf16" if fast else "fp32"
    available = _windows(out)
    timing: dict[str, Any] = {}
    if steps is None:
        minutes = minutes or MINUTES
        console.message(f"Timing {TIMED_STEPS} steps in {precision} to see how many fit {minutes:g} minutes")
        seconds = _seconds_per_step(_run(out, available, TIMED_STEPS, precision), console)
        steps = max(FEWEST_STEPS, int(60 * minutes / seconds))
        timing = {"seconds_per_step": seconds}
        most = (EPOCHS["prose"] * available["prose"] + available["code"]) // BATCH
        if steps > most:
            console.message(f"{steps:,} steps would fit, the text is enough for {most:,}")
            steps = most
    run = _run(out, available, steps, precision)
    write_json(
        path, {"asked": {"minutes": minutes, "steps": None if timing else steps}, **timing, "run": run}
    )
    return run


def _windows(out: Path) -> dict[str, int]:
    """Windows that each source's training text has."""
    dataset = Dataset(out / "data")
    return {name: dataset.train(name).num_tokens // WINDOW for name in EPOCHS}


def _subset(available: dict[str, int], steps: int) -> dict[str, int]:
    """Windows of each source such that 4 epochs of prose and 1 of code fill `steps` batches exactly."""
    total, each = steps * BATCH, EPOCHS["prose"]
    prose = min(
        available["prose"], max(1, round(PROSE_SHARE * total / each), -(-(total - available["code"]) // each))
    )
    code = total - each * prose
    if not 1 <= code <= available["code"]:
        most = (each * available["prose"] + available["code"]) // BATCH
        raise InputError(
            f"{steps:,} steps need more text than this Python's library has; at most {most:,} can be made."
        )
    return {"prose": prose, "code": code}


def _run(out: Path, available: dict[str, int], steps: int, precision: str) -> dict[str, Any]:
    config = RunConfig.model_validate(
        {
            "out": str(out / "run"),
            "model": preset("stablelm-5m", vocab_size=VOCABULARY).model_dump(),
            "data": {"path": str(out / "data"), "epochs": EPOCHS, "windows": _subset(available, steps)},
            "batch": {"sequences": BATCH, "micro_sequences": BATCH, "sequence_length": WINDOW},
            "optimizer": {"lr": 1.2e-3},
            "schedule": {"warmup": 0.05},
            "steps": steps,
            "precision": precision,
            # An evaluation costs several steps: a short run has fewer of them.
            "evaluation": {"every": max(FEWEST_STEPS, steps // 8), "windows": 32},
            "checkpoint": {"every": max(1, steps // 4), "keep": 2},
            "logging": {"every": max(1, steps // 40)},
            "device": "cpu",
        }
    )
    return config.model_dump(mode="json")


def _seconds_per_step(run: dict[str, Any], console: Console) -> float:
    """Median time of a step, measured on a throw-away model that reads the real data."""
    trainer = Trainer(run_config(run), console)
    seconds = []
    for _ in range(TIMED_STEPS):
        began = time.perf_counter()
        trainer.train_step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])
