"""How a Slurm cluster is asked for jobs: the `slurm:` section of a recipe, and a training run's batch script.

Nothing here can change a byte of what is made. Values that end on an `#SBATCH` line are refused when they
hold white space, quotes or `#`, so none can become another option."""

from typing import Annotated

from pydantic import Field, StringConstraints

from stablelm.config.schema import Schema

Word = Annotated[str, StringConstraints(pattern=r"^[^\s\"'\\#]*$")]
TIME = r"^(\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+(:\d+){0,2})$"
Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\r\n]*$")]


class SlurmPlace(Schema):
    """Where on a cluster, and in which environment."""

    partition: Word = ""
    """Partition; empty: the site's default."""
    account: Word = ""
    """Account that is charged; empty: the site's default."""
    qos: Word = ""
    """Quality of service; empty: the site's default."""
    constraint: Word = ""
    """Features that a node must have."""
    options: list[Annotated[str, StringConstraints(pattern=r"^--?[^\s\"'\\#]+$")]] = Field(default=[])
    """More options of sbatch, each one word, as --exclude=node7."""
    setup: list[Line] = Field(default=[])
    """Lines of bash before the work, as `module load python` or `source venv/bin/activate`."""
    command: Word = ""
    """The command on the nodes, as `stablelm` when `setup` puts it on the path; empty: this Python."""


class SlurmConfig(SlurmPlace):
    """Jobs of `stablelm data prepare RECIPE --executor slurm`."""

    jobs: int = Field(32, ge=1)
    """Jobs in the array of a stage; a site's MaxArraySize (often 1001) is the limit."""
    concurrent: int = Field(0, ge=0)
    """How many jobs of an array run at a time; 0: no limit."""
    cpus: int = Field(1, ge=1)
    """Cores of a job, each with a process of its own."""
    memory_per_cpu: str = Field("4G", pattern=r"^[1-9]\d*[KMGT]?$")
    """Memory of a core, as `sbatch --mem-per-cpu` takes it (4G, 4000M)."""
    time: str = Field("04:00:00", pattern=TIME)
    """Time limit of a job, as `sbatch --time` takes it; submitted again, a job that was cut short goes on."""


class TrainingJob(SlurmPlace):
    """The job of `stablelm launch slurm`."""

    nodes: int = Field(1, ge=1)
    """Machines."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs of a machine, each with a task of its own."""
    cpus_per_task: int = Field(8, ge=1)
    """Cores for each GPU."""
    time: str = Field("24:00:00", pattern=TIME)
    """Time limit, as `sbatch --time` takes it; the job is queued again until the run is done."""
    notice: int = Field(300, ge=1)
    """Seconds before the time limit at which the tasks are asked to save and stop."""
    least: int = Field(600, ge=0)
    """A job that fails in fewer seconds is not queued again."""
    restarts: int = Field(100, ge=0)
    """How often the job queues itself again, at most."""
