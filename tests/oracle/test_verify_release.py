"""`runs/verify_release.sh`, rehearsed on random weights in a local Hub cache, without network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stablelm.config import preset
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

pytestmark = pytest.mark.oracle
ID = "stabilityai/stablelm-3b-4e1t"
CONFIG = preset("stablelm-3b-4e1t", hidden_size=160, num_hidden_layers=2, num_attention_heads=2)


@pytest.fixture
def verify(root: Path, shared: Path, tmp_path: Path):
    """`verify(spoil=None, **expected)` → exit code and output of the script."""
    folder = tmp_path / "hub" / "models--stabilityai--stablelm-3b-4e1t"
    snapshot = folder / "snapshots" / ("1" * 40)
    model = StableLM(CONFIG, 5)
    # Fresh weights say nothing: every logit is near 0. Scaled, they differ by more than bfloat16 rounds.
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    save_pretrained(
        model.to(torch.bfloat16), Tokenizer.from_file(shared / "data" / "neox-tokenizer"), snapshot
    )
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1" * 40)

    def run(**expected: int) -> tuple[int, str]:
        counts = {
            "PARAMETERS": model.num_parameters(), "TENSORS": len(model.state_dict()),
            "BYTES": 2 * model.num_parameters(), **expected,
        }  # fmt: skip
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
        environment = {**os.environ, **offline, **{k: str(v) for k, v in counts.items()}}
        environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
        script = root / "runs" / "verify_release.sh"
        done = subprocess.run([script, ID], env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_right_weights_pass_every_step(verify) -> None:
    code, output = verify()
    assert code == 0, output
    for said in ("logits agree", "everything agrees", "The weather is always wonderful", "sdpa: the default"):
        assert said in output
    assert output.count("as released") == 3


def test_another_number_of_tensors_fails_by_name(verify) -> None:
    code, output = verify(TENSORS=356)
    assert code != 0 and "tensors: 26 (WRONG: 356 expected)" in output
    assert "everything agrees" not in output
