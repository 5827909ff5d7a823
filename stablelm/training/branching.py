"""A run that branches off another into a cooldown, in a directory of its own.

It is the other run, continued: weights, moments, step and place in the data come from one checkpoint, which
is only read, on whatever mesh either runs. From then on it stands alone: its own checkpoints carry what it
must know of its parent (`branch` in state.json), so that it is resumed although the parent has gone on, moved
or vanished. A branch that was killed before its first save begins again at the parent's checkpoint. Rejected:
copying that checkpoint first (12 bytes a parameter, for a bridge that is crossed once)."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stablelm.config import InputError, RunConfig
from stablelm.config.run import steps_of
from stablelm.interchange.native import FOLDER, finished_checkpoints, is_checkpoint
from stablelm.interchange.provenance import read_provenance
from stablelm.planning.schedule import Origin, Schedule
from stablelm.training.checkpoint import read_state
from stablelm.training.resume import remedy_for

Parent = dict[str, Any]
"""`checkpoint`, and of its state what `_KEPT` lists (`branch` if it is one itself); the `ancestors` of its
initial weights, and what it `adapted` of these."""
_KEPT = ("step", "samples", "steps", "config", "data_fingerprint", "branch", "guard")


def parent_of(config: RunConfig) -> Parent | None:
    """What a branch knows of the run that it has branched off; None for a run that is no branch.

    From its own newest checkpoint if there is one, else from `branch.checkpoint`. `InputError` where that is
    no checkpoint, or ends in a step that the data did not fill."""
    if config.branch is None:
        return None
    saved = finished_checkpoints(Path(config.out))
    if saved:
        state = read_state(saved[-1], remedy_for(saved[-1]))
        if not isinstance(found := state.get("branch"), dict):
            raise InputError(
                f"{saved[-1]}: is of a run that is no branch. Give the branch an --out of its own."
            )
        return found
    path = Path(config.branch.checkpoint)
    if not is_checkpoint(path):
        others = finished_checkpoints(path if (path / FOLDER).is_dir() else path.parent.parent)
        known = f"That run has {', '.join(other.name for other in others)}" if others else "Name one"
        raise InputError(
            f"branch.checkpoint: {path} is no finished checkpoint of a run. {known}: RUN/{FOLDER}/step-N."
        )
    if not (path / "optimizer").is_dir():
        raise InputError(
            f"branch.checkpoint: {path} has weights alone, no optimizer's moments (a mean of checkpoints?). "
            "Branch off a checkpoint of the run itself, or start a new run from these weights by init."
        )
    state = read_state(path, remedy_for(path, branching=True))
    if state["samples"] != steps_of(_config(state)).position(state["step"]):
        raise InputError(
            f"branch.checkpoint: {path} is the end of its data, {state['samples']:,} samples, and its last "
            "step was not full; nothing can follow it. Branch off an earlier checkpoint."
        )
    origin = read_provenance(path)
    kept: Parent = {k: state[k] for k in _KEPT if k in state}
    return {
        "checkpoint": str(path), **kept,
        "ancestors": [ancestor.as_dict() for ancestor in origin.ancestors],
        "adapted": origin.about.get("adapted", {}),
    }  # fmt: skip


def origin_of(parent: Parent | None) -> Origin | None:
    """Where the learning rate of a branch begins."""
    return None if parent is None else Origin(parent["step"], _schedule(parent))


def _schedule(state: dict[str, Any]) -> Schedule:
    """The learning rate of the run that a state is of."""
    return Schedule.of(_config(state), state["steps"], origin_of(state.get("branch")))


def _config(state: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(state["config"])
    except ValidationError as error:
        raise InputError(
            f"branch.checkpoint: its configuration is not understood ({error.errors()[0]['msg']}); another "
            "version saved it. Branch off with that one."
        ) from None
