"""Answers to a file of prompts, exact after an interruption: OUT is whole or absent.

Until all are there, they are kept in OUT.partial/: what was asked for (settings.json) and the answers of
the batches that were finished (done.jsonl, flushed to the disk after each). The same command goes on there;
another one is refused. Batches are always the same consecutive lines, and line n draws with seed + n, so
what is continued is what would have been written at once."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stablelm
from stablelm.cli.prompts import Prompt
from stablelm.config.errors import InputError
from stablelm.storage import (
    atomic_file,
    directory_lock,
    explain_full_disk,
    fingerprint,
    read_json,
    refuse_existing,
    write_json,
)  # fmt: skip

if TYPE_CHECKING:
    from stablelm.inference import PrefixCache, Sampling
    from stablelm.model import StableLM
    from stablelm.tokenizer import Tokenizer


LEAST_SHARED = 8
"""Tokens for which it is worth to keep a beginning."""


def stamp(model: Path) -> str:
    """Names a model's files as they are now: sizes and times, not their bytes (a 3B model has 5.6 GB)."""
    from stablelm.interchange.neox import is_neox
    from stablelm.interchange.open import locate

    folder = locate(model) if model.is_dir() and not is_neox(model) else model
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else [folder]
    return fingerprint([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def begun_seed(out: Path) -> int | None:
    """The seed that an unfinished OUT was begun with."""
    settings = out.with_name(f"{out.name}.partial") / "settings.json"
    return read_json(settings).get("seed") if settings.is_file() else None


def answer_file(
    out: Path,
    model: "StableLM",
    tokenizer: "Tokenizer",
    prompts: Sequence[Prompt],
    sampling: "Sampling",
    max_new_tokens: int,
    stop: Sequence[str],
    batch: int,
    facts: dict[str, Any],
    say: Callable[[str], object],
    how: dict[str, Any] | None = None,
) -> None:
    """Writes `out`: {"id", "prompt", "text"} for each prompt; `facts` say what model this is, `how` is given
    to `generate`.

    A prompt that does not fit is refused before the first is answered. A beginning that all prompts have is
    read once."""
    from stablelm.inference import generate
    from stablelm.model.adapters import names_of, use

    context, how = model.config.max_position_embeddings, how or {}
    for one in prompts if how.get("window") is None else ():
        if (length := len(tokenizer.encode(one.text))) + max_new_tokens > context:
            raise InputError(
                f"the prompt of line {one.line:,} has {length:,} tokens; with --max-new-tokens "
                f"{max_new_tokens:,} that is more than the model's context of {context:,}. Shorten it, ask "
                "for fewer, or let it lose its beginning: --truncate left."
            )
    adapted = bool(names_of(model))
    asked: list[list[Any]] = [[one.id, one.given, one.text] + [one.adapter] * adapted for one in prompts]
    settings = {
        **facts, "prompts": fingerprint(asked), "max_new_tokens": max_new_tokens, "stop": list(stop),
        "batch": batch, "version": stablelm.__version__, **json.loads(json.dumps(asdict(sampling))), **how,
    }  # fmt: skip
    work = out.with_name(f"{out.name}.partial")
    refuse_existing(out)
    with directory_lock(work):
        done = work / "done.jsonl"
        kept = _resume(work, settings, prompts, batch)
        if how.get("window") is None and not adapted:  # what an adapter reads is its own
            how = {**how, "prefix": _beginning(model, tokenizer, prompts, how.get("cache"))}
        began, first = time.perf_counter(), kept
        for start in range(kept, len(prompts), batch):
            some, texts = prompts[start : start + batch], list[str]()
            for adapter, alike in groupby(some, lambda one: one.adapter):
                if adapted:
                    use(model, adapter)
                texts += generate(
                    model, tokenizer, [one.text for one in alike], max_new_tokens=max_new_tokens, stop=stop,
                    sampling=sampling.shifted(start + len(texts)), **how,
                )  # fmt: skip
            lines = [
                json.dumps({"id": one.id, "prompt": one.given, "text": text}, ensure_ascii=False) + "\n"
                for one, text in zip(some, texts, strict=True)
            ]
            with explain_full_disk(done), open(done, "ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
            count = start + len(some)
            left = (time.perf_counter() - began) / (count - first) * (len(prompts) - count)
            say(f"{count:,} of {len(prompts):,} answers, {left:,.0f} s left")
        with atomic_file(out) as file, open(done, "rb") as source:
            shutil.copyfileobj(source, file)
    shutil.rmtree(work)
    say(f"{out}: {len(prompts):,} answers" + (f", {kept:,} of them from before" if kept else ""))


def _beginning(
    model: "StableLM", tokenizer: "Tokenizer", prompts: Sequence[Prompt], kind: str | None
) -> "PrefixCache | None":
    """What all prompts begin with, read; it stays as it is, so that a resumed file is the same file."""
    from stablelm.inference.prefix import PrefixCache, common_beginning

    shared = common_beginning([tokenizer.encode(one.text) for one in prompts])
    if len(prompts) == 1 or len(shared) < LEAST_SHARED:
        return None
    prefix = PrefixCache(model, kind)
    prefix.read(shared)
    prefix.follows = False
    return prefix


def _resume(work: Path, settings: dict[str, Any], prompts: Sequence[Prompt], batch: int) -> int:
    """Makes `work` ready; → the answers that are there, whole batches only. The rest is cut off."""
    file, done = work / "settings.json", work / "done.jsonl"
    if not file.is_file():
        done.unlink(missing_ok=True)
        write_json(file, settings)
        return 0
    before = read_json(file)
    changed = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
    if changed:
        raise InputError(
            f"{work}: was begun with another {', '.join(changed)}. Give the same command to go on, or remove "
            "that directory to start anew."
        )
    data = done.read_bytes() if done.is_file() else b""
    lines = data.split(b"\n")[:-1]  # what follows the last line end was never finished
    if len(lines) > len(prompts):
        raise InputError(f"{done}: more lines than prompts. Remove {work} to start anew.")
    count = len(lines) if len(lines) == len(prompts) else len(lines) // batch * batch
    for number, (line, prompt) in enumerate(zip(lines[:count], prompts, strict=False), 1):
        try:
            found = json.loads(line)
            same = (found["id"], found["prompt"], type(found["text"])) == (prompt.id, prompt.given, str)
        except (ValueError, TypeError, KeyError):
            same = False
        if not same:
            raise InputError(f"{done}, line {number:,}: damaged. Remove {work} to start anew.")
    if done.is_file():
        with open(done, "r+b") as cut:
            cut.truncate(sum(len(line) + 1 for line in lines[:count]))
    return count
