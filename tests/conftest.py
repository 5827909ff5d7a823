"""What all tests share: where the test data is, one thread, examples that are the same on every machine."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: exact comparisons want one thread count
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests beside tests: waiting threads must not spin
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # or each process that compiles starts two more

settings.register_profile("stablelm", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("stablelm")

ROOT = Path(__file__).resolve().parent.parent
POOLED = "tests/distributed/"
ALONE = ("test_checkpoints.py", "test_resuming.py")  # of those, have processes of their own, which are killed
NEEDED = ("data/corpus/raw", "data/neox-tokenizer/tokenizer.json", "seed/configs")


def pytest_collection_finish():
    """Modules and tests stay until the end: each run of the trainer begins with a collection, which would
    look at all of them, 0.4 s each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which need not be there
def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile`, but that the files of `tests/distributed` that share four processes are one, and
    the first: with two workers there would be two times four, and nothing takes longer."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OnePool(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return POOLED if file.startswith(POOLED) and not file.endswith(ALONE) else file

        def _assign_work_unit(self, node):
            if POOLED in self.workqueue:
                self.workqueue.move_to_end(POOLED, last=False)
            super()._assign_work_unit(node)

    return OnePool(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data: $STABLELM_TEST_DATA, or `shared` beside the checkout.

    A test may be skipped only where no such folder exists at all; one that lacks something is a failure."""
    named = os.environ.get("STABLELM_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared"
    if not folder.exists():
        assert not named, f"STABLELM_TEST_DATA is {named}, which does not exist"
        pytest.skip(f"no test data: {folder} does not exist (set STABLELM_TEST_DATA)")
    missing = [name for name in NEEDED if not (folder / name).exists()]
    assert not missing, f"{folder} lacks {', '.join(missing)}"
    return folder
