"""`kill -9` of a run that trains an adapter: resumed, it ends with the bytes of the undisturbed one."""

import signal
import subprocess
import sys
import time

from stablelm.training.metrics import read_metrics
from tests.finetuning.conftest import TALKS, base, write_lines  # noqa: F401 (a fixture)


def test_a_killed_adapter_run_ends_with_the_same_bytes(base, tmp_path):  # noqa: F811
    chats = write_lines(tmp_path / "chats.jsonl", [{"messages": said} for said in TALKS])
    settings = {
        "adapter.method": "dora", "batch.sequences": "2", "checkpoint.every": "3", "recompute": "full",
        "evaluation.every": "50", "device": "cpu", "card.name": "mine",
    }  # fmt: skip

    def command(out, *more):
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        run = [sys.executable, "-m", "stablelm", "finetune", str(base), str(chats), "--out", str(out)]
        return [*run, "--lora", "4", "--lr", "5e-3", "--epochs", "8", "--sequence-length", "96", *sets, *more]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    out, killed = tmp_path / "killed", 0
    for reached in (8, 20):
        process = subprocess.Popen(
            command(out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None:
            if (out / "metrics.jsonl").exists() and len(read_metrics(out)) >= reached:
                process.send_signal(signal.SIGKILL)
                killed += process.wait(timeout=60) == -signal.SIGKILL
            time.sleep(0.005)
    assert killed == 2 and not (out / "adapter").exists()
    subprocess.run(command(out, "--resume"), check=True, capture_output=True)
    losses = [
        [(r["step"], r["loss"]) for r in read_metrics(run) if "loss" in r]
        for run in (tmp_path / "whole", out)
    ]
    assert losses[0] == losses[1] and len(losses[0]) > 40
    for file in (tmp_path / "whole" / "adapter").iterdir():
        if file.name != "base.json":  # which says where the base lies from here
            assert (out / "adapter" / file.name).read_bytes() == file.read_bytes(), file.name
