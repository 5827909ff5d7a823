"""`stablelm launch …`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from stablelm.cli.options import Overrides

app = typer.Typer(help="Write what starts a run on a cluster; nothing is submitted.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `slurm` a word of its own while it is the only one."""


@app.command()
def slurm(
    config: Annotated[Path, typer.Argument(help="YAML run, ours or GPT-NeoX's.")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")],
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a machine, each with its task.")] = 8,
    cpus_per_gpu: Annotated[int, typer.Option(min=1, help="Cores for each GPU.")] = 8,
    time: Annotated[str, typer.Option(help="Time limit of a job, as sbatch takes it.")] = "24:00:00",
    partition: Annotated[str, typer.Option(help="Partition.", show_default="the site's")] = "",
    account: Annotated[str, typer.Option(help="Account to charge.", show_default="the site's")] = "",
    qos: Annotated[str, typer.Option(help="Quality of service.", show_default="the site's")] = "",
    constraint: Annotated[str, typer.Option(help="Features that a node must have.")] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="More of sbatch, as --exclude=node7; may be repeated.")
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(help="A line of bash before the work, as 'module load cuda'; may be repeated."),
    ] = None,
    command: Annotated[str, typer.Option(help="The command on the nodes.")] = "stablelm",
    set_: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="the terminal")] = None,
) -> None:
    """Write the batch script of a training run: one task a GPU, saved before the time limit, queued again.

    Example: stablelm launch slurm configs/stablelm-3b.yml --nodes 32 --out runs/256_gpus.slurm
    """
    from stablelm.config import load_run_config
    from stablelm.config.schema import validate
    from stablelm.config.slurm import TrainingJob

    values = {
        "nodes": nodes, "gpus_per_node": gpus_per_node, "cpus_per_task": cpus_per_gpu, "time": time,
        "partition": partition, "account": account, "qos": qos, "constraint": constraint,
        "options": option or [], "setup": setup or [], "command": command,
    }  # fmt: skip
    job = validate(TrainingJob, values, "launch slurm")
    run = load_run_config(config, set_ or [], gpus=nodes * gpus_per_node)
    from stablelm.planning.launching import slurm_script
    from stablelm.storage import write_text

    said = shlex.join(["stablelm", *sys.argv[1:]])
    text = slurm_script(config, run, job, set_ or [], said)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
        typer.echo(f"{out}: submit it with sbatch {out}")
