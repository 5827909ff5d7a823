"""Back to the last good checkpoint, past the samples that led there: what a run does when rejecting steps
does not help (the method of PaLM, Chowdhery et al., 2022, §5.1, without a person).

A checkpoint is good when a later step, computed with its weights, was accepted. From there on all samples up
to the last rejected step are left out that came after the checkpoint, but at most `guard.lookback` accepted
steps' worth. The range is a skipped range as `data.skip` makes it: accounts and `data find` count with it,
the learning rate does not change, and nothing behind it does.

RUN/guard.json holds every rollback and is written before anything is removed: a run that is killed then, and
resumed, finds there which ranges to leave out and which checkpoints are of the abandoned attempt. Checkpoints
carry the same list, so that they can go on elsewhere. Nothing is written into what the user said."""

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stablelm.config import InputError, RunConfig
from stablelm.config.errors import RunError
from stablelm.data.unread import documents_of, told
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import MANIFEST, read_json, write_json, write_text
from stablelm.training.checkpoint import LATEST, load_checkpoint, not_finite, read_state
from stablelm.training.ema import kept
from stablelm.training.guard import Rollback
from stablelm.training.resume import remedy_for
from stablelm.training.watchdog import SLOW

if TYPE_CHECKING:
    from stablelm.training.trainer import Trainer

RECORD = "guard.json"
"""Of a run, what it has gone back from."""
REPORT = "unrecovered.json"
"""Of a run that could not be helped, where and on what it failed."""


def recorded(run: Path, parent: dict[str, Any] | None = None) -> list[Rollback]:
    """The rollbacks of a run so far, those of the one that it branched off included."""
    saved = finished_checkpoints(run)
    if (run / RECORD).is_file() and (saved or parent):
        return _rollbacks(read_json(run / RECORD), run / RECORD)
    state: Any = parent
    if saved:
        with contextlib.suppress(InputError):  # a damaged one is told of when it is read
            state = read_json(saved[-1] / "state.json")
    known = state.get("guard") if isinstance(state, dict) else None
    return [] if known is None else _rollbacks(known, saved[-1] if saved else run)


def _rollbacks(found: Any, path: Path) -> list[Rollback]:
    try:
        return [{**each, "to": int(each["to"]), "skip": [int(n) for n in each["skip"]]}
                for each in found["rollbacks"]]  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: damaged: its `rollbacks` cannot be read. Restore it.") from None


def reading(config: RunConfig, rollbacks: list[Rollback]) -> RunConfig:
    """The configuration whose data leave out, beside `data.skip`, what the run has gone back from."""
    if not rollbacks:
        return config
    skip = [*config.data.skip, *((first, last) for first, last in (each["skip"] for each in rollbacks))]
    return config.model_copy(update={"data": config.data.model_copy(update={"skip": skip})})


def abandoned(run: Path, rollbacks: list[Rollback]) -> list[Path]:
    """Finished checkpoints that the run has gone back from, when it was killed before it removed them."""
    if not rollbacks:
        return []
    beyond = [path for path in finished_checkpoints(run) if _step(path) > rollbacks[-1]["to"]]
    states = [(path, read_json(path / "state.json")) for path in beyond]
    return [path for path, s in states if len(s.get("guard", {}).get("rollbacks", [])) < len(rollbacks)]


def remove(checkpoints: list[Path]) -> list[str]:
    """Removes finished checkpoints, their commit mark first; returns their names."""
    for path in checkpoints:
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    for run in {path.parent.parent for path in checkpoints}:
        left = finished_checkpoints(run)
        if left:
            write_text(left[-1].parent / LATEST, left[-1].name + "\n")
        else:
            (checkpoints[0].parent / LATEST).unlink(missing_ok=True)
    return [path.name for path in checkpoints]


def beyond_help(t: "Trainer") -> str | None:
    """Why rejecting steps does not help a run any more, or None; every process calls it."""
    found = t.ranks.together(lambda: not_finite(t.model.state_dict()))
    if (name := next(filter(None, found), None)) is not None:
        return f"step {t.step:,}: the weights are not finite (tensor {name!r})"
    row = t.guard.row
    if not t.guard.exhausted:
        return None
    return f"steps {row[0]['step']:,} to {t.step:,} were rejected ({row[-1]['reason']})"


def go_back(t: "Trainer", why: str) -> None:
    """Takes a run back to the last good checkpoint, or stops it with a report; every process calls it."""
    t.watchdog.beat(t.step, "going back", SLOW)
    t.checkpoints.settle()
    guard, samples = t.guard, t.plan.samples
    saved = t.ranks.at_first(lambda: finished_checkpoints(t.run))
    proven = {each["to"] for each in guard.rollbacks}
    good = [path for path in saved if _step(path) < guard.accepted or _step(path) in proven]
    if not good and t.parent is not None:
        good = [Path(t.parent["checkpoint"])]
    target = good[-1] if good else None
    to = _step(target) if target is not None else 0
    bad = guard.row[0]["step"] if guard.row else t.step
    first = max(to, bad - 1 - t.config.guard.lookback)
    begin = int(t.loader.numbers(t.loader.steps.position(first), 1)[0])
    end = t.loader.next_number(min(t.loader.steps.position(t.step), samples)) - 1
    found: Rollback = {"to": to, "from": t.step, "reason": why, "skip": [begin, end], "rejected": guard.row}
    tries = sum(each["to"] == to for each in guard.rollbacks)
    if target is None:
        raise _stop(t, found, "there is no good checkpoint to go back to")
    if tries >= t.config.guard.rollbacks:
        times = "guard.rollbacks is 0" if not tries else f"going back to {target} {tries} times did not help"
        raise _stop(t, found, times)
    rollbacks = [*guard.rollbacks, found]
    try:
        t.ranks.together(lambda: t.open(reading(t.config, rollbacks)))
    except InputError as error:
        raise _stop(t, found, f"without these samples the run does not fit its data: {error}") from None
    names = t.ranks.at_first(lambda: told(t.loader, [(begin, end)]))
    t.ranks.at_first(lambda: write_json(t.run / RECORD, {"rollbacks": rollbacks}))
    t.ranks.at_first(lambda: remove([path for path in saved if _step(path) > to]))
    guard.rollbacks = rollbacks
    remedy = remedy_for(target, branching=target not in saved)
    state = t.ranks.together(lambda: read_state(target, remedy))[t.ranks.rank]
    t.ranks.together(t.open_samples)
    t.make_plan()
    load_checkpoint(target, t.model, t.optimizer, t.ranks, remedy, kept(t.ema, state))
    t.continue_from(state)
    if t.metrics is not None:
        t.metrics.rewind(t.step)
    t.ranks.at_first(t.write_accounts)
    t.console.message(
        f"{why}. Back to {target.name}; samples {begin:,} to {end:,} will be left out ({names}). Recorded in "
        f"{t.run / RECORD}"
    )


def _stop(t: "Trainer", found: Rollback, why_not: str) -> RunError:
    """Writes the report of a run that cannot go on; the error that ends it."""
    begin, end = found["skip"]
    names = t.ranks.at_first(lambda: told(t.loader, [(begin, end)]))
    report = {**found, "documents": t.ranks.at_first(lambda: documents_of(t.loader, [(begin, end)]))}
    t.ranks.at_first(lambda: write_json(t.run / REPORT, report))
    return RunError(
        f"step {t.step:,}: {found['reason']}, and {why_not}. The weights were not changed by rejected steps. "
        f"Samples {begin:,} to {end:,} are of {names}; {t.run / REPORT} lists all. Look at these documents; "
        "lower optimizer.lr or lengthen schedule.warmup; data.skip leaves samples out by hand."
    )


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
