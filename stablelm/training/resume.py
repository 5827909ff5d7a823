"""What a checkpoint must agree on before a run may continue from it."""

import contextlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stablelm.config import InputError, RunConfig
from stablelm.planning import Plan

# These change what is printed, where, or in which pieces a step is computed, not which steps are made.
_FREE = ("out", "device", "checkpoint", "evaluation", "logging", "loss_chunk", "card")


def state_of(
    step: int, plan: Plan, config: RunConfig, data_fingerprint: str, evaluations: list[dict[str, Any]]
) -> dict[str, Any]:
    """All that continuing needs besides tensors."""
    return {
        "step": step,
        "samples": min(step * config.batch.sequences, plan.samples),
        "steps": plan.steps,
        "config": config.model_dump(mode="json"),
        "data_fingerprint": data_fingerprint,
        "evaluations": evaluations,
    }


def same_run(state: dict[str, Any], config: RunConfig, data_fingerprint: str, path: Path) -> None:
    """Refuses to continue with another configuration or other data; names the first key that differs."""
    saved = state["config"]
    with contextlib.suppress(
        ValidationError
    ):  # keys that came later have their defaults, which change nothing
        saved = RunConfig.model_validate(saved).model_dump(mode="json")
    difference = _difference(_decisive(saved), _decisive(config.model_dump(mode="json")), "")
    if difference:
        name, before, given = difference
        raise InputError(
            f"{path}: was trained with {name} = {before!r}, this run says {given!r}. Resume with the same "
            "configuration, or start a new run in another --out."
        )
    if state["data_fingerprint"] != data_fingerprint:
        raise InputError(
            f"{path}: was trained on another dataset or mixture than {config.data.path} (their "
            "fingerprints differ). Resume with the data it began with."
        )


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in _FREE}
    kept["batch"] = {name: value for name, value in kept["batch"].items() if name != "micro_sequences"}
    kept["data"] = {name: value for name, value in kept["data"].items() if name != "path"}
    return kept


def _difference(saved: Any, given: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys()):
            found = _difference(saved.get(key), given.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if saved == given else (name, saved, given)
