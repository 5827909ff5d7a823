"""What a checkpoint must agree on before a run may continue from it.

The past is fixed, the future of the data is free: a run may go on with other phases and skipped ranges as
long as every sample that it has consumed stays what it was, and the learning rate is planned for as many
steps. A run that branches off may choose its cooldown besides."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stablelm.config import InputError, RunConfig
from stablelm.config.mixture import PhaseConfig
from stablelm.data.run_data import TrainingData, open_data
from stablelm.data.samples import Samples
from stablelm.interchange.native import checkpoint_before
from stablelm.planning import Plan

# These change what is printed, where, or in which pieces a step is computed, not which steps are made.
_FREE = (
    "out", "device", "checkpoint", "evaluation", "logging", "loss_chunk", "card", "parallel", "recompute",
    "compile", "guard", "ema", "preflight",
)  # fmt: skip
_BRANCH = ("branch", "schedule.cooldown_shape", "schedule.cooldown_floor")  # what a branch has of its own
_FUTURE = ("epochs", "phases", "skip", "windows", "document_boundaries")  # of `data`: judged by what was read

_SAME = "Resume with the same configuration, or start a new run in another --out."
_PARENTAL = (
    "A branch has its parent's configuration but for branch.cooldown_steps, schedule.cooldown_shape and "
    "schedule.cooldown_floor; to change more, start a new run from the weights (init)."
)


def state_of(
    step: int,
    plan: Plan,
    config: RunConfig,
    loader: Samples,
    evaluations: list[dict[str, Any]],
    parent: dict[str, Any] | None = None,
    guard: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All that continuing needs besides tensors; `parent` is what a branch keeps of the run it comes from,
    `guard` the memory of the one who judges steps."""
    consumed = min(loader.steps.position(step), plan.samples)
    return {
        "step": step,
        "samples": consumed,
        "skipped": loader.skips.before(loader.next_number(consumed)),
        "steps": plan.schedule_steps,
        "config": config.model_dump(mode="json"),
        "data_fingerprint": loader.fingerprint,
        "evaluations": evaluations,
        **({"branch": parent} if parent else {}),
        **({"guard": guard} if guard else {}),
    }


def remedy_for(path: Path, *, branching: bool = False) -> str:
    """How to go on, or to branch off, when the checkpoint at `path` is damaged."""
    before = checkpoint_before(path)
    if branching:
        return f"Branch off another: {before or 'restore the file, there is none before it'}."
    if before is None:
        return "There is no checkpoint before it: restore the file, or start a new run in another --out."
    aside = f"{path}.damaged"
    return (
        f"The checkpoint before it is {before.name}; to go on from there: mv {shlex.quote(str(path))} "
        f"{shlex.quote(aside)}, then the same command with --resume."
    )


def same_run(
    state: dict[str, Any],
    config: RunConfig,
    loader: Samples,
    path: Path,
    *,
    steps: int | None,
    force_data: bool = False,
    opening: Callable[[RunConfig], tuple[TrainingData, Samples]] = open_data,
) -> None:
    """Refuses to continue with another configuration or another past; names the keys that differ.

    `steps` are what the learning rate is planned for; None branches off, with a plan of its own.
    `force_data` takes whatever data the configuration names: the samples go on at the number that the
    checkpoint has reached, in the new data's order. `opening` opens the data of a run."""
    branching = steps is None
    changed = partial(_changed, path, _PARENTAL if branching else _SAME)
    saved, given = state["config"], config.model_dump(mode="json")
    began: RunConfig | None = None
    with contextlib.suppress(
        ValidationError
    ):  # keys that came later have their defaults, which change nothing
        began = RunConfig.model_validate(saved)
        saved = began.model_dump(mode="json")
    differing = list(_differences(_decisive(saved), _decisive(given), ""))
    if force_data:
        differing = [found for found in differing if found[0].split(".")[0] != "data"]
    if branching:
        differing = [found for found in differing if not found[0].startswith(_BRANCH)]
        if given["steps"] not in (None, saved.get("steps"), state["steps"]):
            differing.append(("steps", state["steps"], given["steps"]))
    if differing:
        others = ", ".join(name for name, _, _ in differing[1:])
        raise InputError(changed(*differing[0]) + (f" Also different: {others}." if others else ""))
    past = loader
    if force_data:
        began = None
    if began is not None and any(saved["data"].get(key) != given["data"][key] for key in _FUTURE):
        # The data as they were, from the paths of today.
        data = began.data.model_copy(update={"path": config.data.path, "replay": config.data.replay})
        _, past = opening(began.model_copy(update={"data": data, "out": config.out}))
    if state["data_fingerprint"] != past.fingerprint and not force_data:
        remedy = (
            "Resume with the data it began with; --force-data goes on with these all the same, and what the "
            "checkpoint had read of them may be read again."
        )
        raise InputError(
            f"{path}: was trained on another dataset or mixture than {config.data.path or 'data.neox'} "
            f"(their fingerprints differ). {_PARENTAL if branching else remedy}"
        )
    if began is not None and (found := _phases_behind(began, config, state["step"])):
        raise InputError(
            changed(f"data.phases, {found[0]}", *found[1:])
            + f" The {state['step']:,} steps so far are done; phases may change what comes after them."
        )
    end = past.next_number(int(state["samples"]))
    if past is not loader and (found := _difference(past.prefix(end), loader.prefix(end))):
        tables = {"epochs": saved["data"]["epochs"]}, {"epochs": given["data"]["epochs"]}
        if all(table["epochs"] for table in tables):  # the user's own key
            found = _difference(*tables) or found
        raise InputError(
            changed(f"data.{found[0]}", *found[1:])
            + f" The samples up to number {end - 1:,} are consumed; phases and "
            "skipped ranges may change what comes after them. To go further back, "
            + ("branch off an earlier checkpoint." if branching else "remove this checkpoint.")
        )
    if steps not in (None, state["steps"]):
        raise InputError(
            changed("steps", state["steps"], steps)
            + f" They plan the learning rate; with `steps: {state['steps']}` the data ahead may change."
        )


def _phases_behind(began: RunConfig, config: RunConfig, step: int) -> tuple[str, Any, Any] | None:
    """The first difference of batch or learning rate before a step, as the phases of two pasts say them."""
    pasts = _settings(began, step), _settings(config, step)
    for begin in sorted(pasts[0].keys() | pasts[1].keys()):
        then, now = (past[max(b for b in past if b <= begin)] for past in pasts)
        if found := _difference(then, now):
            return f"from step {begin + 1:,}: {found[0]}", *found[1:]
    return None


def _settings(config: RunConfig, step: int) -> dict[int, dict[str, Any]]:
    """What is in effect from each phase's first step on, up to `step`."""
    found: dict[int, dict[str, Any]] = {}
    begin = 0
    for phase in config.data.parts() or [PhaseConfig()]:
        if begin >= step:
            break
        found[begin] = {
            "sequences": phase.sequences or config.batch.sequences,
            "sequence_length": phase.sequence_length or config.batch.sequence_length,
            "lr": phase.lr or config.optimizer.lr,
            "schedule": phase.schedule and phase.schedule.model_dump(),
            "until_step": phase.until_step if phase.schedule else None,  # a schedule is planned up to its end
        }
        begin = phase.until_step or step
    return found or {0: {}}


def _changed(path: Path, remedy: str, name: str, before: Any, now: Any) -> str:
    return f"{path}: was trained with {name} = {before!r}, this run says {now!r}. {remedy}"


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in (*_FREE, "steps")}
    kept["batch"] = {name: value for name, value in kept["batch"].items() if name != "micro_sequences"}
    kept["data"] = {name: value for name, value in kept["data"].items() if name not in ("path", *_FUTURE)}
    if replay := kept["data"].get("replay"):  # where the older run and its data are may change
        kept["data"]["replay"] = {"share": replay["share"]}
    return kept


def _differences(saved: Any, given: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys()):
            yield from _differences(saved.get(key), given.get(key), f"{name}.{key}" if name else key)
    elif isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given):
        for index, (a, b) in enumerate(zip(saved, given, strict=True)):
            yield from _differences(a, b, f"{name}.{index}")
    elif saved != given:
        yield name, saved, given


def _difference(saved: Any, given: Any) -> tuple[str, Any, Any] | None:
    return next(_differences(saved, given, ""), None)
