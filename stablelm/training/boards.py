"""TensorBoard and Weights & Biases as sinks of a run's records. Both are extras; neither can stop a run.

Their packages are looked for before the run starts (an `InputError` names what to install). What fails later,
a network, a disk, an account, is told once by `Metrics`, and the run goes on without."""

import logging
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stablelm.config import InputError, RunConfig
from stablelm.storage import read_json, write_json
from stablelm.training.metrics import Sink

IDENTITY = "wandb.json"
"""In a run's directory, by which name W&B knows it."""


def boards_of(
    config: RunConfig, run: Path, step: int, *, fresh: bool, message: Callable[[str], None]
) -> dict[str, Sink]:
    """The sinks that a configuration asks for besides metrics.jsonl, by name. `fresh`: a new run, not one
    that is continued after `step` steps."""
    found: dict[str, Sink] = {}
    if config.logging.tensorboard:
        found["TensorBoard"] = TensorBoard(run, step)
    if config.logging.wandb is not None:
        package = _wandb()
        try:
            found["Weights & Biases"] = WandB(config, run, fresh=fresh, message=message, package=package)
        except Exception as error:  # its errors have no class in common
            message(
                f"warning: Weights & Biases did not start ({_first_line(error)}). The run goes on without "
                "it; `wandb login` and `logging.wandb: {mode: offline}` are the usual remedies."
            )
    return found


def numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The measurements of a record under names for a board: train/loss, evaluation/web/bits_per_byte; one by
    source or by layer has another part, train/source_loss/web, health/grad_rms/07."""
    prefix = record.get("kind", "train")
    if "source" in record:
        prefix = f"{prefix}/{record['source']}"
    elif "task" in record:
        prefix = f"{prefix}/{record['task']}"
    yield from _numbers(prefix, record)


def _numbers(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield prefix, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(f"{prefix}/{name}", part)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _numbers(f"{prefix}/{index:02d}", part)


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                'logging.tensorboard needs TensorBoard: pip install "stablelm[track]", or set it to false.'
            ) from None
        self._open: Callable[[int], Any] = lambda step: SummaryWriter(
            str(run / "tensorboard"), purge_step=step + 1
        )
        self._writer = self._open(step)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record's measurements."""
        for name, value in numbers(record):
            self._writer.add_scalar(name, value, record["step"])

    def rewind(self, step: int) -> None:
        """A new event file, which takes back what came after `step`."""
        self._writer.close()
        self._writer = self._open(step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise InputError(
            'logging.wandb needs its package: pip install "stablelm[track]", or leave the section out.'
        ) from None
    return wandb


class WandB:
    """A run of Weights & Biases; a resumed run continues the same one.

    Its files lie in RUN/wandb. What cannot be reached at the start is written offline. Curves are over the
    key `step`, not over W&B's own count, which may not go back as a rollback does: steps that were made twice
    are twice on its page."""

    def __init__(
        self, config: RunConfig, run: Path, *, fresh: bool, message: Callable[[str], None], package: Any
    ) -> None:
        settings = config.logging.wandb
        assert settings is not None
        path = run / IDENTITY
        known = read_json(path) if path.is_file() and not fresh else {}
        same = isinstance(known, dict) and known.get("project") == settings.project and known.get("id")
        identity = str(known["id"]) if same else secrets.token_hex(4)
        write_json(path, {"project": settings.project, "id": identity})
        logging.getLogger("wandb").setLevel(logging.ERROR)

        def begin(mode: str) -> Any:
            return package.init(
                project=settings.project, entity=settings.entity, name=settings.name or run.name, id=identity,
                resume="allow" if mode == "online" else None, mode=mode, dir=str(run),
                config=config.model_dump(mode="json"),
                settings=package.Settings(
                    silent=True, console="off", login_timeout=15, init_timeout=60, finish_timeout=120
                ),
            )  # fmt: skip

        try:
            self._run = begin(settings.mode)
        except Exception as error:
            if settings.mode == "offline":
                raise
            message(
                f"warning: Weights & Biases cannot be reached ({_first_line(error)}); written offline. "
                f"Later: wandb sync {run / 'wandb'}/offline-run-*"
            )
            self._run = begin("offline")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, record: dict[str, Any]) -> None:
        """Logs a record's measurements."""
        if found := dict(numbers(record)):
            self._run.log({"step": record["step"], **found})

    def rewind(self, step: int) -> None:
        """Nothing can be taken back."""

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
