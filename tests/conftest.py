"""What all tests share: where the test data is, one thread, examples that are the same on every machine."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: exact comparisons want one thread count
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests beside tests: waiting threads must not spin

settings.register_profile("stablelm", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("stablelm")

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("data/corpus/raw", "data/neox-tokenizer/tokenizer.json", "seed/configs")


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
