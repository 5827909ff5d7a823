"""What makes a prepared directory another than a recipe describes, key by key and file by file.

Inputs are compared by size and hash; where the work directory shows that they are the files that were read
(same size and time stamp), they are not hashed again."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from stablelm.config import InputError
from stablelm.config.recipe import DataRecipe
from stablelm.data.execution import Stage, Work, finished
from stablelm.data.inputs import InputFile, hash_file
from stablelm.data.manifest import Dataset
from stablelm.data.stages.decontaminating import set_hashes
from stablelm.storage import MANIFEST, fingerprint
from stablelm.tokenizer import Tokenizer

_NOT_CONTENT = {"out", "work", "workers", "tokenizer", "slurm"}


class _Stages(Protocol):
    @property
    def stages(self) -> list[Stage]: ...


def settings_of(recipe: DataRecipe) -> dict[str, Any]:
    """What of a recipe decides the content of OUT; the tokenizer counts by its hash."""
    return recipe.model_dump(mode="json", exclude=_NOT_CONTENT)


def list_hashes(recipe: DataRecipe) -> dict[str, str]:
    """Hashes of the files that a recipe judges by: blocklists, models, evaluation sets."""
    found = {}
    for source in recipe.sources:
        if source.filters.active():
            from stablelm.data.signals import measured_by

            found[f"filters of {source.name}"] = fingerprint(measured_by(source.filters))
    hashes = set_hashes(recipe).items()
    return {**found, **{f"decontamination.sets.{name}": sha256 for name, sha256 in hashes}}


def still_current(recipe: DataRecipe, tokenizer: Tokenizer, pipeline: _Stages, work: Work) -> bool:
    """Whether OUT is there and is what the recipe makes; `InputError` says what differs, when it is another
    prepared directory."""
    out = Path(recipe.out)
    if not (out / MANIFEST).is_file():
        return False
    dataset = Dataset(out)
    made = dataset.manifest
    differences = list(_settings(made.get("recipe"), settings_of(recipe)))
    if not differences:
        before, now = made.get("lists", {}), list_hashes(recipe)
        differences += [f"{name}: its files changed" for name in now if now[name] != before.get(name)]
    if made["tokenizer"]["sha256"] != tokenizer.sha256:
        differences.append(f"{recipe.tokenizer} is another tokenizer than the one in {out}")
    plan, read = pipeline.stages[:2]
    unread = any(finished(work.path, plan, task) is None for task in work.tasks(plan))
    if unread or any(finished(work.path, read, task) is None for task in work.tasks(read)):
        for task in work.tasks(plan):
            if task.name in dataset.sources:
                found = [InputFile.from_dict(file) for file in task.arguments["files"]]
                differences += _inputs(task.name, dataset.info(task.name)["inputs"], found)
    if differences:
        listed = "".join(f"\n  {difference}" for difference in differences[:20])
        more = f"\n  and {len(differences) - 20:,} more" if len(differences) > 20 else ""
        raise InputError(
            f"{out}: already exists, and the recipe or its inputs changed since:{listed}{more}\n"
            f"Choose another `out`, or remove it and prepare again; what {work.path} holds is not done again."
        )
    return True


def _settings(made: Any, wanted: Any, at: str = "") -> Iterator[str]:
    """The keys whose values differ."""
    if isinstance(made, Mapping) and isinstance(wanted, Mapping):
        for key in dict.fromkeys([*made, *wanted]):
            yield from _settings(made.get(key), wanted.get(key), f"{at}.{key}" if at else str(key))
    elif at == "sources" and isinstance(made, list) and isinstance(wanted, list):
        by_name = [{source["name"]: source for source in sources} for sources in (made, wanted)]
        yield from _settings(by_name[0], by_name[1], at)
    elif made != wanted:
        yield f"{at or 'recipe'}: {_shown(made)} then, {_shown(wanted)} now"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) < 80 else f"{text[:77]}…"


def _inputs(source: str, made: list[dict[str, Any]], found: list[InputFile]) -> Iterator[str]:
    """The files that differ from those that were read."""
    before = {file["path"]: file for file in made}
    for file in found:
        known = before.pop(file.shown, None)
        if known is None:
            yield f"{source}: {file.shown} is new"
        elif known["bytes"] != file.size:
            yield f"{source}: {file.shown} changed: {known['bytes']:,} bytes then, {file.size:,} now"
        elif known["sha256"] != hash_file(file):
            yield f"{source}: {file.shown} changed: its sha256 is another"
    yield from (f"{source}: {path} is gone" for path in before)
