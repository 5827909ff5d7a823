"""Processes that are started again agree on a name that none of the dead has left."""

import threading

import pytest
import torch.distributed as dist

from stablelm.training.parallel.meeting import agree


def attempt(store, world, late=(), timeout=30.0):
    names, threads = {}, []
    for rank in range(world):
        job = threading.Thread(target=lambda r=rank: names.update({r: agree(store, r, world, timeout)}))
        threads.append(job)
    for rank in sorted(range(world), key=lambda rank: rank in late):
        threads[rank].start()
    for thread in threads:
        thread.join()
    assert len(names) == world and len(set(names.values())) == 1
    return names[0]


def test_every_attempt_has_a_name_of_its_own():
    """In one store, with what earlier attempts have left, also of more processes or cut off half way."""
    store = dist.HashStore()
    first = attempt(store, 4)
    store.set("hello/1", "of one that died before it was answered")
    names = [first, attempt(store, 4, late=(0,)), attempt(store, 2), attempt(store, 4, late=(1, 2))]
    assert len(set(names)) == 4


def test_one_that_does_not_come_is_told():
    store = dist.HashStore()
    store.set("hello/1", "of the dead")
    with pytest.raises(RuntimeError, match="process 1 did not come"):
        agree(store, 0, 2, 0.2)
