"""A run that stands still ends, and says which process holds it up and where.

Every process notes how far it is (`beat`), all in the same order; a thread of its own looks at the note. When
there was no new one for `guard.hang_timeout`, each writes RUN/hang-rank-N.txt: what it was doing, the stacks
of its threads, and whether it was waiting for others. Then each reads what the others wrote: to blame is who
wrote nothing (stopped, or its machine is gone), else who waits for nobody, else who is furthest behind. The
first that is left says so, and all end with exit code 1, so that torchrun or Slurm may start them again. A
process whose main thread keeps the interpreter to itself ends by a timer in C, its stack on standard error.

Evaluation, saving and the first step, in which blocks are compiled, have ten times as long. Costs nothing:
a note is an assignment. Rejected: heartbeats over the network, which is what may have failed."""

import faulthandler
import os
import re
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType

from torch import nn

from stablelm.config import RunConfig

SLOW = 10.0
"""How many times longer what is not a plain step may take."""
_GRACE = 10.0
"""Seconds that processes wait for what the others write."""
_FIRST = re.compile(r"at (\d+)\.(\d+), (waiting for others|waiting for nobody)")


def place(run: Path, rank: int) -> Path:
    """Where a process says how it hangs."""
    return run / f"hang-rank-{rank}.txt"


class Watchdog:
    """Watches the main thread of this process; a context manager."""

    def __init__(self, run: Path, rank: int, world: int, timeout: float) -> None:
        """`timeout`: seconds without a beat; 0 never barks."""
        self.run, self.rank, self.world, self.timeout = run, rank, world, timeout
        self._note = (0, 0, "starting", time.monotonic(), SLOW)
        self._first: int | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, config: RunConfig, rank: int, world: int, model: nn.Module) -> "Watchdog":
        """That of a run, which notes each pass of the model by itself."""
        timeout = config.guard.hang_timeout
        if timeout is None:
            timeout = max(60.0, 0.9 * config.parallel.timeout) if world > 1 else 0.0
        made = cls(Path(config.out), rank, world, timeout)
        model.register_forward_pre_hook(lambda *_: made.beat(made._note[0], "computing"))
        return made

    def beat(self, step: int, doing: str, patience: float = 1.0) -> None:
        """Notes what comes next, in which step; it may take `patience` times the timeout."""
        before = self._note
        number = before[1] + 1 if before[0] == step else 0
        self._first = step if self._first is None else self._first
        if step == self._first:
            patience = SLOW
        self._note = (step, number, doing, time.monotonic(), patience)

    def __enter__(self) -> "Watchdog":
        if self.timeout:
            self._note = (*self._note[:3], time.monotonic(), SLOW)
            place(self.run, self.rank).unlink(missing_ok=True)
            self._arm(self.timeout * SLOW)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _arm(self, left: float) -> None:
        """Sets the timer in C, which must go off only when the thread below does not get to run."""
        faulthandler.dump_traceback_later(max(left, 0) + 10, exit=True, file=sys.__stderr__ or 2)

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.timeout / 10)):
            _, _, _, at, patience = self._note
            left = self.timeout * patience - (time.monotonic() - at)
            if left < 0:
                self._bark()
            self._arm(left)

    def _bark(self) -> None:
        step, number, doing, at, _ = self._note
        main = sys._current_frames()[threading.main_thread().ident or 0]
        stack = traceback.extract_stack(main)
        inside = any(f"torch{os.sep}distributed" in frame.filename for frame in stack[-3:])
        waits = "waiting for others" if inside else "waiting for nobody"
        with open(place(self.run, self.rank), "w", encoding="utf-8") as file:
            file.write(
                f"rank {self.rank} of {self.world}, process {os.getpid()} on {socket.gethostname()}, step "
                f"{step + 1:,}: {doing} for {time.monotonic() - at:,.0f} s\nat {step}.{number}, {waits}\n\n"
                f"{''.join(stack.format())}\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.write("end\n")
        verdict = self._verdict()
        if verdict is not None:
            sys.stderr.write(verdict + "\n")
            sys.stderr.flush()
        os._exit(1)

    def _verdict(self) -> str | None:
        """What the first of the processes that are left says; None in the others."""
        until = time.monotonic() + min(_GRACE, self.timeout)
        told: dict[int, str] = {}
        while len(told) < self.world and time.monotonic() < until:
            for rank in range(self.world):
                path = place(self.run, rank)
                text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
                if text.endswith("end\n"):
                    told[rank] = text
            time.sleep(0.1)
        if min(told) != self.rank:
            return None
        silent = [rank for rank in range(self.world) if rank not in told]
        if silent:
            names = ", ".join(map(str, silent))
            return (
                f"error: rank {names} of {self.world} wrote nothing when the run stood still: stopped, its "
                "machine gone, or stuck in C (then its stack is on its standard error). The stacks of the "
                f"others are in {self.run}/hang-rank-*.txt. Start all again with --resume."
            )
        notes = {rank: _FIRST.search(text) for rank, text in told.items()}
        order = {
            rank: (note[3] == "waiting for others", int(note[1]), int(note[2]))
            for rank, note in notes.items()
            if note is not None
        }
        worst = min(order, key=lambda rank: order[rank])
        head, _, rest = told[worst].partition("\n")
        frames = [line.strip() for line in rest.split("\n\n")[1].splitlines() if line.startswith("  File")]
        return (
            f"error: the run stood still: {head}, in {frames[-1] if frames else 'no Python frame'}. Its "
            f"stacks are in {place(self.run, worst)}. Start all again with --resume; guard.hang_timeout "
            "waits longer."
        )
