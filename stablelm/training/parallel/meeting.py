"""Where processes that torchrun starts again meet: in the same store, under a name of their own.

torchrun keeps one store for all its attempts, and PyTorch (2.13) reads in it the addresses that the dead have
left: every restart would fail with refused connections. Neither the restart count (unchanged when machines
come or go) nor the number of processes names an attempt, so the first process makes a name up and the others
learn it. Nothing stale can be believed: each says hello with a word of its own, and the answer stands under
that word. Costs a few small messages a process."""

import datetime
import time
import uuid
from collections.abc import Mapping

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

PAUSE = 0.02


def meet(environment: Mapping[str, str], rank: int, world: int, timeout: float) -> Store | None:
    """The store of this attempt, of `world` processes; None where torchrun keeps none.

    Raises a `RuntimeError` when not all come within `timeout` seconds."""
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    patience = datetime.timedelta(seconds=timeout)
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = TCPStore(address, port, world, is_master=False, timeout=patience)
    name = agree(store, rank, world, timeout)
    return PrefixStore(f"attempt/{name}", store)


def agree(store: Store, rank: int, world: int, timeout: float) -> str:
    """A name that all processes of this attempt have, and none of another."""
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", mine)
        name = str(store.get(f"answer/{rank}/{mine}"), "ascii")
        store.set(f"heard/{name}/{rank}", "")
        return name
    left, until = set(range(1, world)), time.monotonic() + timeout
    while left:
        for other in sorted(left):
            if store.check([f"heard/{mine}/{other}"]):
                left.discard(other)
            elif store.check([f"hello/{other}"]):  # perhaps of one that is dead; then of the next
                store.set(f"answer/{other}/{store.get(f'hello/{other}').decode()}", mine)
        if left and time.monotonic() > until:
            raise RuntimeError(f"process {min(left)} did not come")
        time.sleep(PAUSE if left else 0)
    return mine
