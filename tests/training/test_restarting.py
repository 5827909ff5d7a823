"""Whether torchrun has started a run before."""

import pytest

from stablelm.training.restarting import note_start, restarted


@pytest.mark.parametrize(
    ("noted", "environment", "expected"),
    [
        (None, {}, False),
        (None, {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none"}, False),
        (None, {"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_RUN_ID": "none"}, True),
        ("none", {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none"}, False),
        (
            "77",
            {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "77"},
            True,
        ),  # machines came or went
        ("77", {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "78"}, False),
        ("77", {}, False),
    ],
)
def test_restarts(tmp_path, noted, environment, expected):
    if noted is not None:
        note_start(tmp_path, {"TORCHELASTIC_RUN_ID": noted})
    assert restarted(tmp_path, environment) == expected
