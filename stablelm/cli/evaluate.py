"""`stablelm evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Paths or Hub ids; several are shown side by side.")],
    suite: Annotated[
        str | None,
        typer.Option(
            help="stablelm-3b-4e1t (the nine published tasks, zero-shot), open-llm-leaderboard, or safety "
            "(toxicity, stereotypes, personal data).",
            show_default="stablelm-3b-4e1t",
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Instead: any lm_eval tasks, as piqa,mmlu.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Directory with <task>.jsonl, to evaluate without a network; for safety with prompts.jsonl, "
            "pairs.jsonl, leakage.jsonl or lexicon.txt of your own."
        ),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="For safety: a local Hugging Face classifier of toxic texts, beside the word list."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many items of each task: a quick look.")] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Paired differences to the first model, or of adapters to MODEL alone, with 95 % intervals.",
        ),
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR",
            help="Evaluate the one MODEL with an adapter in PEFT's format, or a run that trained one; may be "
            "repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of results.json, samples and report.html.", show_default="evaluations/NAME"
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Precision; auto is that of the files.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Run benchmarks with lm_eval's tasks and prompts, and put the numbers beside the published ones.

    An evaluation that was stopped goes on where it was when the same command is given again.

    Example: stablelm evaluate runs/demo/model --data evaluation-files --limit 100
    """
    from stablelm.config import InputError
    from stablelm.evaluation.suites import choose_tasks

    wanted = choose_tasks(suite, [task for task in (tasks or "").split(",") if task])
    if compare and len(models) < 2 and not adapter:
        raise InputError("--compare wants at least two models, or an --adapter.")
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from stablelm.cli.options import precision
    from stablelm.evaluation.evaluate import evaluate_suite, subjects_of
    from stablelm.evaluation.pages import difference_table, table

    subjects = subjects_of(models, adapter or (), compare)
    target = out or Path("evaluations") / "-and-".join(name for name, *_ in subjects)
    number = None if dtype == "auto" else precision(dtype)
    found, differences = evaluate_suite(
        models, wanted, data, limit, target, number, device, compared=compare, classifier=classifier,
        adapters=adapter or (), say=typer.echo,
    )  # fmt: skip
    console = Console()

    def show(title: str, header: list[str], rows: list[list[str]]) -> None:
        grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for column in header:
            grid.add_column(column)
        for row in rows:
            grid.add_row(*row)
        console.print(grid)

    show(f"{wanted.name}, percent", *table(found, wanted))
    for first, second, parts in differences:
        show(f"{second} minus {first}, percent points", *difference_table(parts))
    for one in found:
        for note in one.notes:
            typer.echo(f"{one.model}: {note}" if len(found) > 1 else note)
    typer.echo(f"{target / 'report.html'}")
