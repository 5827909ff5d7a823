"""From a recipe to a prepared directory: read, split, encode, shuffle, write, account for everything.

    OUT/<source>/train.bin .idx .ids    token files, and the id of every document, one JSON string a line;
                                        train-00000.bin … when there are several
    OUT/<source>/held_out.bin …         the same for held-out documents, if there are any
    OUT/tokenizer.json …                what the ids mean
    OUT/report.json                     what a report shows: reasons, real examples, distributions
    OUT/clusters-exact.jsonl …-near     which documents were taken for one; decontamination.json, what leaked
    OUT/manifest.json                   what went in, what was dropped and why, sizes and hashes; written last
    OUT.work/                           what the stages made, kept: see execution.py

OUT appears whole or not at all; the work directory lets a killed or changed preparation go on where it can.
The result depends neither on the order of reading nor on how many processes did it, in which pieces."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.config.mixture import as_fraction
from stablelm.config.recipe import DataRecipe
from stablelm.config.schema import suggest
from stablelm.data.accounting import final_accounts, reading_accounts
from stablelm.data.accounts import SourceAccount, refuse_errors
from stablelm.data.changes import list_hashes, settings_of, still_current
from stablelm.data.execution import DONE, Executor, Progress, Stage, Work, execute, run_part
from stablelm.data.executors.local import Local
from stablelm.data.manifest import FORMAT, SIDES, seal
from stablelm.data.progress import Plain
from stablelm.data.report_data import REPORT, REPORT_VERSION, source_report
from stablelm.data.stages.assembling import Assemble, Layout
from stablelm.data.stages.clusters import export_clusters
from stablelm.data.stages.decontaminating import Decontaminate, IndexSets
from stablelm.data.stages.deduplicating import Steps, steps
from stablelm.data.stages.filtering import HISTOGRAMS, Decide, Signals
from stablelm.data.stages.reading import Plan, Read, shards_of
from stablelm.data.stages.tokenizing import EXAMPLES_FILE, Order, Tokenize, keep_tokenizer, tokenizer_of
from stablelm.data.token_files import token_dtype
from stablelm.storage import (
    atomic_directory,
    directory_lock,
    fingerprint,
    read_json,
    refuse_existing,
    require_space,
    write_json,
    write_manifest,
)
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.infilling import added_by

_UNPACKED = {".gz": 4, ".zst": 5, ".parquet": 4}  # bytes of text in a byte of file, roughly


@dataclass(frozen=True)
class Pipeline:
    """The stages of a recipe."""

    plan: Plan
    read: Read
    signals: Signals
    decide: Decide
    repetitions: Steps
    index: IndexSets
    decontaminate: Decontaminate
    tokenize: Tokenize
    order: Order
    layout: Layout
    assemble: Assemble

    @classmethod
    def of(cls, recipe: DataRecipe, tokenizer: Tokenizer, place: str) -> "Pipeline":
        """The recipe's stages, with the tokenizer kept at `place` below the work directory."""
        plan = Plan(recipe)
        read = Read(recipe, plan)
        signals = Signals(recipe, read)
        decide = Decide(recipe, signals)
        filtered = any(source.filters.active() for source in recipe.sources)
        repetitions = steps(recipe, read, (decide,) if filtered else ())
        index = IndexSets(recipe)
        decontaminate = Decontaminate(recipe, read, index, repetitions.judges)
        judges: tuple[Stage, ...] = repetitions.judges
        editors: tuple[Stage, ...] = (signals,) if filtered else ()
        if repetitions.editor is not None:
            editors = (*editors, repetitions.editor)
        if recipe.decontamination is not None:
            judges, editors = (*judges, decontaminate), (*editors, decontaminate)
        tokenize = Tokenize(recipe, read, place, tokenizer.eos_id, judges, editors)
        order = Order(recipe, tokenize)
        layout = Layout(recipe, order)
        assemble = Assemble(recipe, layout, tokenizer.size)
        return cls(
            plan, read, signals, decide, repetitions, index, decontaminate, tokenize, order, layout, assemble
        )

    @property
    def stages(self) -> list[Stage]:
        """Those that have work, in the order in which they run."""
        filtered = any(source.filters.active() for source in self.plan.recipe.sources)
        filtering: list[Stage] = [self.signals, self.decide] if filtered else []
        wanted = self.plan.recipe.decontamination is not None
        cleaning: list[Stage] = [self.index, self.decontaminate] if wanted else []
        made: list[Stage] = [self.tokenize, self.order, self.layout, self.assemble]
        return [self.plan, self.read, *filtering, *self.repetitions.stages, *cleaning, *made]


def work_directory(recipe: DataRecipe) -> Path:
    """Where the stages work."""
    return Path(recipe.work or f"{recipe.out.rstrip('/')}.work")


def prepare(
    recipe: DataRecipe,
    *,
    progress: Progress | Callable[[str], None] | None = None,
    executor: Executor | None = None,
) -> Path:
    """Prepares what the recipe says; returns the directory. `progress` may be a function that takes lines.

    An OUT that is what the recipe says is left alone. `InputError` when it is something else, for sources or
    a tokenizer that cannot be read, (on_error: stop) for the first broken document, and (skip) for too many;
    `DiskFullError` when the disk cannot hold the result, before anything is read if that can be foreseen;
    `RunError` when a worker is lost."""
    out, report = Path(recipe.out), _reporting(progress)
    tokenizer = tokenizer_of(recipe)
    work = Work(work_directory(recipe))
    pipeline = Pipeline.of(recipe, tokenizer, f"tokenizers/{tokenizer.sha256[:16]}")
    files = work.tasks(pipeline.plan)
    if new := added_by(Tokenizer.from_file(recipe.tokenizer), tokenizer):
        report.message(
            f"{recipe.tokenizer}: gets {new}; a model of these data has {tokenizer.size:,} ids or more"
        )
    if still_current(recipe, tokenizer, pipeline, work):
        report.message(f"{out}: up to date")
        return out
    refuse_existing(out)
    text = sum(_unpacked_size(file) for task in files for file in task.arguments["files"])
    needed = text + int(text * 0.8 * token_dtype(tokenizer.size).itemsize) if not work.path.exists() else 0
    require_space(out, needed, "preparing this recipe")
    runner = executor or Local(recipe.workers)
    try:
        with directory_lock(work.path):
            keep_tokenizer(tokenizer, work.path)
            execute(pipeline.stages[:2], work, runner, report)
            refuse_errors(reading_accounts(pipeline.read, work), recipe.max_error_rate)
            execute(pipeline.stages[2:], work, runner, report)
            _publish(recipe, tokenizer, pipeline, work)
            report.message(
                f"{work.path}: {work.size():,} bytes of work kept, so that a change repeats little"
            )
    finally:
        runner.close()
    return out


def run_stage(recipe: DataRecipe, stage: str, part: int, parts: int, progress: Progress) -> int:
    """Does part `part` of `parts` of one stage, as one job of an array; returns how many tasks it ran."""
    tokenizer = tokenizer_of(recipe)
    work = Work(work_directory(recipe))
    place = keep_tokenizer(tokenizer, work.path)
    stages = {entry.name: entry for entry in Pipeline.of(recipe, tokenizer, place).stages}
    if stage not in stages:
        raise InputError(f"no stage {stage!r}{suggest(stage, list(stages))}")
    with directory_lock(work.path, shared=True):
        return run_part(stages[stage], work, part, parts, progress)


def _publish(recipe: DataRecipe, tokenizer: Tokenizer, pipeline: Pipeline, work: Work) -> None:
    """Moves the token files to OUT and writes its manifest."""
    accounts = final_accounts(pipeline.tokenize, work)
    sides = {task.name: mark.result for task, mark in work.marks(pipeline.layout)}
    files = dict.fromkeys(((name, side) for name in sides for side in SIDES), 0)
    made = {name: {side: {"documents": 0, "tokens": 0} for side in SIDES} for name in sides}
    for task, mark in work.marks(pipeline.assemble):
        source, side = task.arguments["source"], task.arguments["side"]
        files[source, side] += 1
        for unit in ("documents", "tokens"):
            made[source][side][unit] += mark.result[unit]
    for name, account in accounts.items():
        for side, counts in sides[name].items():
            assert all(counts[unit] == made[name][side][unit] for unit in made[name][side]), f"{name}/{side}"
        kept = sum(file.kept for file in account.files)
        assert kept == sum(counts["documents"] for counts in sides[name].values()), f"{name}: {kept} kept"
    changed = {name: {"documents": 0, "before": 0, "after": 0} for name in sides}
    rearranged = {name: {"psm": 0, "spm": 0} for name in sides}
    marks = zip(shards_of(pipeline.read, work), work.marks(pipeline.tokenize), strict=True)
    for shard, (_, mark) in marks:
        for key, value in mark.result["changed"].items():
            changed[shard.source][key] += value
        for form, count in mark.result.get("rearranged", {}).items():
            rearranged[shard.source][form] += count
    for name, counts in changed.items():  # what the token files hold is what the changes left
        assert counts["after"] == sum(side["bytes"] for side in sides[name].values()), (
            f"{name}: changed bytes"
        )
    with atomic_directory(Path(recipe.out)) as directory:
        tokenizer.save(directory)
        for source in recipe.sources:
            (directory / source.name).mkdir()
        for task, _ in work.marks(pipeline.assemble):
            folder = work.path / pipeline.assemble.name / task.name
            for file in sorted(folder.iterdir()):
                if file.name != DONE:
                    shutil.move(file, directory / task.arguments["source"] / file.name)
        sources = {}
        for source in recipe.sources:
            about = {"paths": source.paths, "licence": source.licence, "url": source.url}
            counts = {side: {**sides[source.name][side], "files": files[source.name, side]} for side in SIDES}
            sources[source.name] = {
                **about, "epochs": str(as_fraction(source.epochs)), **counts,
                **accounts[source.name].as_dict(), "changed": changed[source.name],
                **({} if source.fim is None else {"fim": rearranged[source.name]}),
            }  # fmt: skip
        clusters, shown = {}, _report(pipeline, work, accounts)
        for each in pipeline.repetitions.clusters:
            clusters[each.name], about_clusters = export_clusters(
                each, work, directory / f"{each.name}.jsonl"
            )
            shown["repetitions"][each.find.listed.spill.step] = about_clusters
        write_json(directory / REPORT, shown)
        if recipe.decontamination is not None:
            write_json(directory / "decontamination.json", pipeline.decontaminate.report(work))
        manifest = {
            "format": FORMAT,
            "version": 1,
            "tokenizer": {"sha256": tokenizer.sha256, "size": tokenizer.size, "eod_id": tokenizer.eos_id},
            "dtype": token_dtype(tokenizer.size).name,
            "append_eod": recipe.append_eod,
            "held_out": recipe.held_out,
            "on_error": recipe.on_error,
            "seed": recipe.seed,
            "recipe": settings_of(recipe),
            "recipe_sha256": fingerprint(settings_of(recipe)),
            "lists": list_hashes(recipe),
            "clusters": clusters,
            "stages": {
                stage.name: {"version": stage.version, "tasks": len(work.tasks(stage))}
                for stage in pipeline.stages
            },
            "sources": sources,
        }
        write_manifest(directory, seal(manifest))
    shutil.rmtree(work.path / pipeline.assemble.name, ignore_errors=True)


def _report(pipeline: Pipeline, work: Work, accounts: Mapping[str, SourceAccount]) -> dict[str, Any]:
    """What `stablelm data report` shows; the clusters are added where they are written."""

    def parts(stage: Stage, name: str, source: str) -> Iterator[Any]:
        for task in work.tasks(stage):
            if piece[task.name] == source:
                yield read_json(work.path / stage.name / task.name / name)

    piece = {shard.name: shard.source for shard in shards_of(pipeline.read, work)}
    marks = work.marks(pipeline.tokenize)
    sources = {
        name: source_report(
            account,
            parts(pipeline.tokenize, EXAMPLES_FILE, name),
            parts(pipeline.signals, HISTOGRAMS, name) if pipeline.signals in pipeline.stages else (),
            (mark.result["replaced"] for task, mark in marks if piece[task.name] == name),
        )
        for name, account in accounts.items()
    }
    editor = pipeline.repetitions.editor
    return {
        "version": REPORT_VERSION,
        "sources": sources,
        "repetitions": {} if editor is None else {"lines": editor.report(work)},
    }


def _reporting(progress: Progress | Callable[[str], None] | None) -> Progress:
    if progress is None:
        return Plain(lambda line: None)
    return progress if hasattr(progress, "advance") else Plain(progress)  # type: ignore[return-value]


def _unpacked_size(file: Mapping[str, Any]) -> int:
    return int(file["size"]) * _UNPACKED.get(os.path.splitext(file["location"])[1].lower(), 1)
