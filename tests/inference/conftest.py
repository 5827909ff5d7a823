"""What the tests of generation share: a tokenizer of a few words."""

import pytest

from stablelm.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    """300 ids; their texts are made of these words."""
    text = "the river runs past a small town, and the old machine waits for her letter. "
    return train_tokenizer([text * 9], 300)
