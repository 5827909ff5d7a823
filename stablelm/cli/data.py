"""`stablelm data …`: from raw sources to token files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from stablelm.cli.find import find
from stablelm.cli.options import Overrides

app = typer.Typer(help="Prepare raw text for training.", no_args_is_help=True)
app.command()(find)


Recipe = Annotated[Path, typer.Argument(help="YAML recipe; configs/data/example.yml shows every key.")]


@app.command()
def prepare(
    recipe: Recipe,
    set_: Overrides = None,
    executor: Annotated[
        Literal["local", "ray", "slurm"],
        typer.Option(help="What runs the work: processes here, a Ray cluster, or Slurm scripts to submit."),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes (local).", show_default="the recipe's, or one a core")
    ] = None,
) -> None:
    """Read, split, tokenise and shuffle the sources of RECIPE into token files with a manifest.

    A preparation that was killed goes on where it was; one whose recipe changed repeats what that concerns.
    Large .jsonl, .parquet and .arrow files are read by several processes, each its part. A compressed file
    (.jsonl.gz, .jsonl.zst) is streamed by one, so a corpus should have more of them than there are processes.

    Example: stablelm data prepare configs/data/example.yml --set on_error=skip
    """
    from stablelm.config.recipe import load_recipe

    wanted = load_recipe(recipe, [*(set_ or []), *([f"workers={workers}"] if workers else [])])
    from stablelm.data import Dataset
    from stablelm.data.preparation import prepare as prepare_recipe
    from stablelm.data.progress import make_progress

    if executor == "slurm":
        from stablelm.data.executors.slurm import write_jobs

        typer.echo(f"written, not submitted: {write_jobs(wanted, wanted.slurm)}")
        return
    runner = None
    if executor == "ray":
        from stablelm.data.executors.ray import Ray

        runner = Ray(wanted.workers)
    out = prepare_recipe(wanted, progress=make_progress(), executor=runner)
    typer.echo("\n".join(Dataset(out).describe()))
    typer.echo(f"Next: stablelm data report {out} (a page of reasons and examples)", err=True)


@app.command()
def run(
    recipe: Recipe,
    stage: Annotated[str, typer.Option(help="The stage, as in the work directory: plan, read, tokenize, …")],
    part: Annotated[str, typer.Option(help="k/N: tasks k, k + N, … of the stage; k from 0.")] = "0/1",
    set_: Overrides = None,
) -> None:
    """Run one part of one stage of RECIPE: a job of an array (--executor slurm writes the scripts).

    Example: stablelm data run recipe.yml --stage read --part 0/8
    """
    import re

    from stablelm.config import InputError
    from stablelm.config.recipe import load_recipe
    from stablelm.data.preparation import run_stage
    from stablelm.data.progress import make_progress

    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not int(found[1]) < int(found[2]):
        raise InputError(f"--part {part}: write k/N with k from 0 to N - 1, as 0/8.")
    wanted = load_recipe(recipe, set_ or [])
    done = run_stage(wanted, stage, int(found[1]), int(found[2]), make_progress())
    typer.echo(f"{stage} {part}: {done:,} tasks done")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="A prepared directory.")],
    out: Annotated[Path | None, typer.Option(help="HTML to write.", show_default="DIR/report.html")] = None,
) -> None:
    """Write one self-contained page: what was read, kept and dropped and why, with real documents.

    Example: stablelm data report data/prepared
    """
    from stablelm.config import InputError
    from stablelm.data import Dataset
    from stablelm.data.report import dataset_page

    if (directory / "run.json").is_file():
        raise InputError(f"{directory}: a run, no prepared data. Its page: stablelm report {directory}")
    target = out or directory / "report.html"
    dataset_page(Dataset(directory)).write(target)
    typer.echo(str(target))


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(help="A prepared directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest.")] = False,
) -> None:
    """Say what a prepared directory holds, by source: documents, tokens, what was left out and why.

    Example: stablelm data inspect data/prepared
    """
    import json

    from stablelm.data import Dataset

    dataset = Dataset(directory)
    if as_json:
        typer.echo(json.dumps(dataset.manifest, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(dataset.describe()))


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="A prepared directory.")],
    samples: Annotated[int, typer.Option(min=0, help="Documents to decode and show, by hash.")] = 1,
) -> None:
    """Read every byte of a prepared directory: hashes, counts, ids in range; decode some documents.

    Example: stablelm data verify data/prepared
    """
    from stablelm.data.checking import verify as check

    for line in check(directory, samples):
        typer.echo(line)
