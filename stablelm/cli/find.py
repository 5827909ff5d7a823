"""`stablelm data find`: where a text is, and at which steps a run reads it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from stablelm.data.manifest import Dataset
    from stablelm.data.search import Found


def find(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory that `stablelm data prepare` wrote.")
    ],
    text: Annotated[str, typer.Argument(help="Text to look for, exactly as written.")],
    run: Annotated[
        Path | None, typer.Option(help="A run's configuration or directory: says when the text is read.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Look in this source only; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Stop after so many documents.")] = 20,
) -> None:
    """Find the documents that contain TEXT, and with --run the steps at which a run reads them.

    Example: stablelm data find data/prepared "call me Ishmael" --run runs/small
    """
    from stablelm.data.manifest import Dataset
    from stablelm.data.search import find as find_text

    dataset = Dataset(directory)
    steps_of = None if run is None else _steps(run, dataset)
    found = find_text(dataset, text, sources=source or None, limit=limit)
    for each in found:
        times = "once" if each.times == 1 else f"{each.times:,} times"
        typer.echo(f"{each.file}, document {each.document:,}: {each.id}")
        where = f"in {Path(each.shard).name}, document {each.place:,} there, at character {each.character:,}"
        typer.echo(f"  {where}, {times}: {' '.join(each.snippet.split())!r}")
        if steps_of is not None:
            typer.echo(f"  {steps_of(each)}")
    if not found:
        typer.echo("not found")
    elif len(found) == limit:
        typer.echo(f"stopped after {limit:,} documents; --limit looks further")


def _steps(path: Path, dataset: "Dataset") -> "Callable[[Found], str]":
    """A function that says when a run reads what was found."""
    from stablelm.config import load_run_config
    from stablelm.config.run import run_config
    from stablelm.data.run_data import open_data
    from stablelm.storage import read_json

    done: int | None = None
    rejected: set[int] = set()
    if path.is_dir():
        config = run_config(read_json(path / "run.json"), str(path / "run.json"))
        from stablelm.training.metrics import read_metrics
        from stablelm.training.rollback import reading, recorded

        records = read_metrics(path)
        done = max((record["step"] for record in records), default=0)
        rejected = {record["step"] for record in records if record.get("kind") == "rejected"}
        config = reading(config.model_copy(update={"out": str(path)}), recorded(path))
    else:
        config = load_run_config(path)
    if config.data.order != "neox":  # the directory may have moved since
        moved = config.data.model_copy(update={"path": str(dataset.path)})
        _refuse_other(config.data.path, dataset)
        config = config.model_copy(update={"data": moved})
    _, samples = open_data(config)
    names = {Path(name).resolve(): name for name in samples.table()}

    def say(found: "Found") -> str:
        name = found.source if config.data.order != "neox" else names.get(Path(found.file).resolve())
        if found.side != "train":
            return "held out: no step trains on it"
        if name not in samples.table():
            return f"the run does not read {found.source!r}"
        steps: dict[int, list[int]] = {}
        for sighting in samples.when(name, found.document, tokens=found.tokens):
            if config.steps is None or sighting.step <= config.steps:
                steps.setdefault(sighting.epoch, []).append(sighting.step)
        if not steps:
            return "no step of this run reads it"
        told = []
        for epoch, each in sorted(steps.items()):
            shown = ", ".join(
                f"{step:,}" + " (rejected)" * (step in rejected) for step in dict.fromkeys(each)
            )
            state = "" if done is None else " (read)" if max(each) <= done else " (to come)"
            told.append(f"epoch {epoch + 1} at step {shown}{state}")
        return "; ".join(told)

    return say


def _refuse_other(path: str, dataset: "Dataset") -> None:
    """Refuses a run on another dataset, where that one can still be opened."""
    from stablelm.config import InputError
    from stablelm.data.manifest import Dataset

    if Path(path).is_dir() and Dataset(path).fingerprint != dataset.fingerprint:
        raise InputError(
            f"{dataset.path}: the run reads another dataset, {path}. Look in that one, or leave out --run."
        )
