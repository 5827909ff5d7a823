"""The training loop, on one process or many: batches in order, AdamW, checkpoints, held-out loss, resume.

The state of a run is its weights, its moments and one number, the completed steps: the order of the samples
and the learning rate are pure functions of it. A run that was killed and resumed therefore repeats the
undisturbed run bit for bit (same machine, threads and PyTorch). A step whose loss or gradient is bad is
rejected before anything changes (guard.py); when that does not help, the run goes back (rollback.py)."""

import contextlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError, RunConfig
from stablelm.config.errors import RunError
from stablelm.data.replay import Joined
from stablelm.data.run_data import TrainingData, open_data
from stablelm.data.samples import Samples
from stablelm.data.unread import accounting
from stablelm.evaluation.shares import Share
from stablelm.interchange.native import finished_checkpoints
from stablelm.interchange.provenance import Ancestor
from stablelm.model import StableLM
from stablelm.planning import Plan, hardware, make_plan, peak_of, resolve_device
from stablelm.planning.flops import flops_per_token, hardware_flops_per_token
from stablelm.planning.schedule import Schedule
from stablelm.storage import require_space, write_json, write_text
from stablelm.training import ema
from stablelm.training.adapting import same_words, told_adaptation
from stablelm.training.agreement import Ranks, answering
from stablelm.training.batches import Batch, Batches
from stablelm.training.boards import boards_of
from stablelm.training.branching import origin_of, parent_of
from stablelm.training.building import Start, build_model
from stablelm.training.checkpoint import clear_leftovers, load_checkpoint, read_state
from stablelm.training.console import Console, Lines, SilentConsole, make_console
from stablelm.training.evaluating import HELD_OUT, Evaluator, told
from stablelm.training.garbage import PinnedGarbage
from stablelm.training.goodput import COMPUTE, DATA, EVALUATION, LOST, SAVE, Clock
from stablelm.training.guard import Guard, refusal
from stablelm.training.health import Health
from stablelm.training.interruption import Interruption
from stablelm.training.measures import Measures, state_of_run
from stablelm.training.metrics import GOODPUT_KIND, METRICS, Metrics
from stablelm.training.optimizer import make_optimizer
from stablelm.training.parallel import Layout
from stablelm.training.parallel.apply import check, compiles, reshard
from stablelm.training.parallel.launch import world_size
from stablelm.training.passes import backward, clip, summed
from stablelm.training.profiling import Profiler
from stablelm.training.resume import remedy_for, same_run, state_of
from stablelm.training.rollback import RECORD, abandoned, beyond_help, go_back, reading, recorded, remove
from stablelm.training.saving import Checkpoints, NotFinite
from stablelm.training.watchdog import SLOW, Watchdog

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "bf16-pure": torch.bfloat16}


class Trainer:
    """One run: what it reads, the network, the optimizer, and how far it is."""

    def __init__(
        self,
        config: RunConfig,
        console: Console | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`device`: this process's, by default the configuration's; `dtype` replaces the precision of weights
        and arithmetic (float64 in tests)."""
        self.config, self.run, self.clock = config, Path(config.out), Clock()
        self.device = device or resolve_device(config.device)
        check(config, world_size(), self.device.type)
        self.ranks = Ranks()
        self.console = (console or make_console()) if self.ranks.first else SilentConsole()
        self.layout = Layout.of(config, self.device.type)
        self.share = Share(self.layout.part, self.layout.data, self._added, self.layout.tensor)
        self.guard = Guard(config.guard)
        self.ranks.together(self._open_data)
        self.make_plan()
        self.dtype = DTYPES[config.precision]
        self.model, start = self.build(dtype)
        self.ancestors, self.adapted = start.ancestors, start.adapted
        self.notes: list[str] = []
        """What is told when the run starts."""
        if self.parent is not None:
            self.ancestors = tuple(Ancestor(**found) for found in self.parent["ancestors"])
            self.adapted = self.parent.get("adapted", {})
        if isinstance(self.dataset, Joined):
            self.notes += self.dataset.lines(self.plan.sources)
        self.notes += told_adaptation(self.adapted, config.batch.sequence_length)
        if start.tokenizer is not None:
            words = self.dataset.tokenizer_files()["tokenizer.json"]
            self.notes.append(same_words(start.tokenizer, words, str(self.dataset.tokenizer_path)))
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.ema = ema.Ema.of(config.ema, self.model)
        self.watchdog = Watchdog.of(config, self.ranks.rank, self.ranks.world, self.model)
        self.measures = Measures(self.dataset, list(self.plan.sources), config.z_loss)
        self.health = Health(config.logging.health, self.model, self.layout)
        self.checkpoints = Checkpoints(self.run, config.checkpoint, self.console.message)
        self.profiler: Profiler | None = None
        """Of the first process, when a trace is asked for."""
        self.metrics: Metrics | None = None
        """Of the first process, while it trains."""
        self.step = 0
        self.targets = 0
        """Predicted tokens of the last step."""
        self.evaluations: list[dict[str, Any]] = []
        """Of held-out text, all so far."""
        self.suite: list[dict[str, Any]] = []
        """The newest of everything else."""

    def open(self, config: RunConfig) -> tuple[TrainingData, Samples]:
        """What a run of this configuration reads; a trainer of other data replaces it."""
        return open_data(config)

    def build(self, dtype: torch.dtype | None) -> tuple[StableLM, Start]:
        """The network, and what is known of its weights; a trainer of a part of it replaces it."""
        return build_model(self.config, self.layout, self.device, dtype)

    def files(self) -> dict[str, bytes]:
        """What a checkpoint keeps beside tensors and numbers."""
        return self.dataset.tokenizer_files()

    def _open_data(self) -> None:
        self.parent = parent_of(self.config)
        self.guard.rollbacks = recorded(self.run, self.parent)
        self.branching = self.parent is not None and not self._saved()
        self.open_samples()
        if self.branching and self.parent is not None:
            parent = Path(self.parent["checkpoint"])
            asked = reading(self.config, self.guard.rollbacks)
            same_run(self.parent, asked, self.loader, parent, steps=None, opening=self.open)
        size, vocabulary = self.dataset.tokenizer_size, self.config.model.vocab_size
        if vocabulary < size:
            raise InputError(
                f"model.vocab_size {vocabulary:,} is smaller than the {size:,} ids of "
                f"{self.dataset.tokenizer_path}; set it to at least {size:,} (padded to a multiple of 128: "
                f"{-(-size // 128) * 128:,})."
            )
        compiled = compiles(self.config, self.device.type)
        self.evaluator = Evaluator(self.config, self.dataset, compiled)

    def open_samples(self) -> None:
        """Opens the samples that are left after all rollbacks."""
        self.dataset, self.loader = self.open(reading(self.config, self.guard.rollbacks))

    def make_plan(self) -> None:
        """Plans the run over these samples."""
        samples, skipped = self.loader.num_samples, self.loader.skips.count
        origin, table = origin_of(self.parent), self.loader.table()
        self.plan: Plan = make_plan(self.config, samples, table, skipped, self.layout.data, origin)
        self.schedule = Schedule.of(self.config, self.plan.schedule_steps, origin)
        self.batches = Batches(self.loader, self.layout, self.config.model.vocab_size)

    def _saved(self) -> list[Path]:
        """Checkpoints to continue from, oldest first."""
        lost = abandoned(self.run, self.guard.rollbacks)
        return [path for path in finished_checkpoints(self.run) if path not in lost]

    def train(self, resume: bool, force_data: bool = False) -> Path:
        """Runs to the last step; saves and stops early on Ctrl-C or SIGTERM."""
        for name in self.ranks.at_first(lambda: clear_leftovers(self.run)):
            self.console.message(f"{name}: a save that was cut off; ignored and removed")
        for name in self.ranks.at_first(lambda: remove(abandoned(self.run, self.guard.rollbacks))):
            self.console.message(f"{name}: the run has gone back from it; removed")
        self._begin(resume, force_data)
        self.ranks.at_first(self._describe)
        for line in (*filter(None, self.notes), *self.plan.lines()):
            self.console.message(line)
        if ended := self.ended():
            self.console.message(f"{self.run}: {ended} already")
            return self.run
        self.ranks.at_first(
            lambda: require_space(self.run, 13 * self.plan.checkpoint_bytes // 12, "a checkpoint")
        )
        self.peak = peak_of(self.device, self.dtype)
        many = f" × {self.layout.world}" if self.layout.world > 1 else ""
        self.console.message(
            f"{hardware(self.device)['name']}{many}, {self.config.precision}: MFU is stated against "
            f"{self.peak.rate * self.layout.world / 1e9:,.0f} GFLOP/s ({self.peak.source})"
        )
        self.console.start(self.plan.steps, self.step)
        try:
            with contextlib.ExitStack() as stack:
                self.ranks.at_first(lambda: self._open_metrics(stack, fresh=not resume))
                interruption = stack.enter_context(Interruption())
                garbage = stack.enter_context(PinnedGarbage())
                stack.enter_context(self.checkpoints)
                stack.enter_context(self.watchdog)
                stack.enter_context(answering(only=True))
                self._loop(interruption, garbage)
        finally:
            self.console.stop()
        return self.run

    def _open_metrics(self, stack: contextlib.ExitStack, *, fresh: bool) -> None:
        message, every = self.console.message, self.config.logging.every
        others = boards_of(self.config, self.run, self.step, fresh=fresh, message=message)
        stack.enter_context(self.clock.open(self.run, lambda: self.step, fresh=fresh, message=message))
        lines = Lines(self.console, lambda: self.plan.steps, every)
        self.metrics = stack.enter_context(Metrics(self.run, self.step, lines, others, message))

    def _record(self, record: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(record)

    def _describe(self) -> None:
        self.write_accounts()
        write_json(self.run / "run.json", self.config.model_dump(mode="json"))
        write_text(self.run / "data.json", self.dataset.summary_json())

    def write_accounts(self) -> None:
        """plan.json and accounting.json: how far the run goes, and what it does not read."""
        write_json(self.run / "plan.json", self.plan.as_dict())
        write_json(self.run / "accounting.json", accounting(self.loader))

    def _begin(self, resume: bool, force_data: bool) -> None:
        """Continues from the newest checkpoint; a branch that has none from that of its parent."""
        saved = self.ranks.at_first(self._saved) if resume else []
        if self.branching and self.parent is not None:
            saved = [Path(self.parent["checkpoint"])]
        elif not saved:
            self.ranks.at_first(lambda: (self.run / RECORD).unlink(missing_ok=True))  # an earlier run's
            if resume:
                self.console.message(f"{self.run}: no checkpoint yet; starting from step 0")
            return
        path, steps = saved[-1], self.plan.schedule_steps
        remedy = remedy_for(path, branching=self.branching)
        state = self.ranks.together(lambda: read_state(path, remedy))[self.ranks.rank]
        if not self.branching:  # else judged before the plan was made
            asked = reading(self.config, self.guard.rollbacks)
            same = partial(same_run, state, asked, self.loader, path, steps=steps, force_data=force_data)
            self.ranks.together(partial(same, opening=self.open))
        load_checkpoint(path, self.model, self.optimizer, self.ranks, remedy, ema.kept(self.ema, state))
        self.continue_from(state)
        if self.branching:  # what a run that never saved has left here is not of this one
            self.ranks.at_first(lambda: (self.run / METRICS).unlink(missing_ok=True))
        begun = "branched off" if self.branching else "resumed"
        self.console.message(f"{begun} {path} after step {self.step:,}")

    def continue_from(self, state: dict[str, Any]) -> None:
        """Takes up the numbers of a checkpoint whose tensors are loaded."""
        self.step, self.evaluations, self.suite = state["step"], state["evaluations"], []
        self.guard.restore(state.get("guard", {}), self.step)
        if self.ema is not None and not self.ema.restore(state):
            self.console.message(f"the moving average of the weights begins here, after step {self.step:,}")

    def ended(self) -> str | None:
        """Why no step is left to make; None while there is one."""
        return f"all {self.plan.steps:,} steps are done" if self.step == self.plan.steps else None

    def _loop(self, interruption: Interruption, garbage: PinnedGarbage) -> None:
        config, clock = self.config, self.clock
        clock.stepping(self.step)
        if self.step == 0 and config.data.replay is not None:
            with clock.phase(EVALUATION):
                self._evaluate()  # what forgetting is counted from
        while self.ended() is None:
            began = time.perf_counter()
            with clock.phase(COMPUTE):
                record = self.train_step()
            clock.stepped(self.step, "reason" in record)
            seconds = time.perf_counter() - began
            rate = record["step_tokens"] / seconds
            used = self._utilization(rate, record["sequence_length"])
            record |= {"tokens_per_second": rate, **used, "seconds": seconds}
            self._record(record)
            garbage.step(self.step)
            last = self.ended() is not None
            if "reason" in record and (why := beyond_help(self)) is not None:
                self._go_back(why)
                continue
            if last or self.step % config.evaluation.every == 0:
                with clock.phase(EVALUATION):
                    self._evaluate()
                last = self.ended() is not None  # what was measured may say so
            self.checkpoints.poll()
            asked = self.ranks.any(interruption.requested)
            if last or self.checkpoints.due(self.step) or asked:
                with clock.phase(SAVE):
                    try:
                        saved = self._save()
                    except NotFinite as error:
                        self._go_back(str(error))
                        continue
                    if asked and not last:
                        self.checkpoints.finish()
                clock.mark(self.step)
                if clock.account is not None:
                    self._record({"step": self.step, "kind": GOODPUT_KIND, **clock.account.shares()})
                if asked and not last:
                    raise RunError(
                        f"stopped after step {self.step:,}, saved as {saved}; continue with --resume."
                    )
        clock.switch(SAVE)  # the last one is waited for

    def _go_back(self, why: str) -> None:
        reached = self.step
        with self.clock.phase(LOST):
            go_back(self, why)
        self.clock.back(reached, self.step)

    def _utilization(self, rate: float, length: int) -> dict[str, float]:
        """MFU by 6N + 12·L·h·s, and HFU with what is recomputed, at the context of a step."""
        config, share = self.config, rate / (self.peak.rate * self.layout.world)
        plain = flops_per_token(config.model, length)
        again = hardware_flops_per_token(config.model, length, config.recompute) - plain
        flops = self.plan.flops_per_token if length == config.batch.sequence_length else plain
        return {"mfu": share * flops, "hfu": share * (flops + again)}

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its metrics, with the sample numbers that data.skip takes."""
        config, steps, samples = self.config, self.loader.steps, self.plan.samples
        span = steps.span(self.step, samples)
        self.watchdog.beat(self.step, "reading its samples")
        following = steps.span(self.step + 1, samples) if self.step + 1 < self.plan.steps else None
        with self.clock.phase(DATA):
            batch = self.batches.get(span, following)
        with self.health.listening(self.step + 1):
            value, norm = self.passes(batch)
        norm_value, lr = float(norm), self.schedule.rate(self.step)
        reason = self.guard.judge(value, norm_value, self.loader.phase(span.first))
        if reason is None:
            clip(self.model, config.optimizer.clip, norm, self.layout)
            self.watchdog.beat(self.step, "updating the weights")
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.health.updated(self.optimizer)
            if self.ema is not None:
                self.ema.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.profiler is not None:
            self.profiler.step(self.step, self.plan.steps)
        if reason is None:
            self.guard.accept(self.step, value, norm_value)
        else:
            faults = self.ranks.together(lambda: batch.fault)
            reason = next((fault for fault in faults if fault), reason)
            self.guard.reject(self.step, reason)
        if (layers := self.health.record(self.step)) is not None:
            self._record(layers)
        reached = span.first + span.windows
        record = {
            "step": self.step, "loss": value, "lr": lr, "grad_norm": norm_value, "samples": reached,
            "tokens": reached * config.batch.sequence_length,
            "step_tokens": span.windows * config.batch.sequence_length,
            "sequence_length": config.batch.sequence_length // span.pieces,
            "first_sample": batch.first_sample, "last_sample": batch.last_sample,
        }  # fmt: skip
        if reason is not None:
            return record | refusal(value, norm_value, reason)
        record |= self.measures.record(value, self.targets)
        shown = self.step in (1, self.plan.steps) or self.step % config.logging.every == 0
        return record | state_of_run(self.loader.seen(reached), self.device) if shown else record

    def passes(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """Leaves the step's gradients in the parameters → loss, gradient norm before clipping; a trainer with
        another loss replaces it."""
        value, norm, self.targets = backward(self.model, batch, self.config, self.layout, self.measures)
        return value, norm

    def _evaluate(self) -> None:
        self.suite = []
        self.watchdog.beat(self.step, "evaluating", SLOW)
        for found in self.evaluator.records(self.model, self.share):
            record = {"step": self.step, **found}
            self._record(record)
            (self.evaluations if record["kind"] == HELD_OUT else self.suite).append(record)
            self.console.message(f"step {self.step}: {told(record)}")
        reshard(self.model)

    def _added(self, mine: torch.Tensor) -> torch.Tensor:
        """A sum over the parts that read different samples."""
        return summed(self.layout, mine.to(self.device)).cpu()

    def _save(self) -> Path:
        self.watchdog.beat(self.step, "saving", SLOW)
        about = {
            "plan": self.plan.as_dict(),
            "hardware": {**hardware(self.device), "processes": self.layout.world},
            "data": self.loader.seen(self.loader.steps.position(self.step)),
            "evaluations": self.evaluations[-len(self.dataset.sources) :],
            "suite": self.suite,
            "dataset": self.dataset.summary(),
            "ancestors": [ancestor.as_dict() for ancestor in self.ancestors],
            "adapted": self.adapted,
        }
        state = state_of(
            self.step, self.plan, reading(self.config, self.guard.rollbacks), self.loader, self.evaluations,
            self.parent, self.guard.state(),
        )  # fmt: skip
        state |= self.ema.state() if self.ema is not None else {}
        tensors = ema.kept(self.ema)
        return self.checkpoints.save(self.model, self.optimizer, state, about, self.files(), tensors)
