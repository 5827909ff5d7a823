"""Four worker processes that live as long as the tests, from a fork server that has imported everything once
(it has made no thread): what imports PyTorch once need not do so for each process, nor for each case.

`pool.run(world, job, *arguments)` calls `job(rank, *arguments)` on the first `world` of them, in a fresh
process group that meets at a file, and gives back what each returned. A job that raises fails the test with
its traceback; one that hangs, or a worker that dies, ends the pool, and the next case has new workers."""

import datetime
import logging
import multiprocessing
import os
import tempfile
import traceback
from pathlib import Path

WORKERS = 4
PRELOADED = [
    "tests.distributed.sharded", "tests.distributed.parity", "stablelm.training.running", "torch._dynamo",
]  # fmt: skip


def forking():
    """The context whose processes begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _work(rank, pipe):
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            os._exit(0)
        pipe.send(_one(rank, *order))


def _one(rank, world, meeting, job, arguments):
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    try:
        if world:
            patience = datetime.timedelta(seconds=180)  # a busy machine is no fault
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=patience
            )
            dist.barrier()  # all are joined before a job may refuse and leave
        return job(rank, *arguments), None
    except BaseException as error:
        return None, (type(error).__name__, str(error), traceback.format_exc())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        # DTensor remembers layouts with their mesh, and finds one of an earlier job that looks like this
        # one's: its groups are gone, or have other names.
        _clear_sharding_prop_cache()
        clear_redistribute_planner_cache()
        torch._dynamo.reset()


class Pool:
    """The workers; made when the first case needs them."""

    def __init__(self):
        self._workers, self._pipes = [], []

    def _start(self):
        context = forking()
        for rank in range(WORKERS):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(rank, theirs), daemon=True)
            worker.start()
            theirs.close()
            self._workers.append(worker)
            self._pipes.append(ours)

    def outcomes(self, world, job, *arguments, group=True, timeout=240):
        """Of each rank (value, None) or (None, (error's type, its text, traceback))."""
        if not self._workers:
            self._start()
        with tempfile.TemporaryDirectory() as folder:
            for pipe in self._pipes[:world]:
                pipe.send((world if group else 0, str(Path(folder) / "meeting"), job, arguments))
            found = []
            for rank, pipe in enumerate(self._pipes[:world]):
                if not pipe.poll(timeout):
                    ended = [p.recv() if p.poll() else "hangs" for p in self._pipes[rank:world]]
                    self.close()
                    raise AssertionError(f"rank {rank} hangs in {job.__name__}: {[*found, *ended]}")
                try:
                    found.append(pipe.recv())
                except EOFError:
                    self.close()
                    raise AssertionError(f"rank {rank} died in {job.__name__}") from None
        return found

    def run(self, world, job, *arguments, **options):
        """What each rank returned; fails with the tracebacks of those that raised."""
        found = self.outcomes(world, job, *arguments, **options)
        errors = [error[2] for _, error in found if error is not None]
        assert not errors, "\n".join(errors)
        return [value for value, _ in found]

    def close(self):
        """Ends the workers."""
        for worker in self._workers:
            worker.kill()
            worker.join()
        self._workers, self._pipes = [], []
