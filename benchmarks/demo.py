"""What the demo achieves: held-out bits per byte beside gzip and xz, steps, throughput, time in steps.

.venv/bin/python benchmarks/demo.py            # of runs/demo, which is made first when it is not there
"""

import argparse
import json
import statistics
from pathlib import Path

from measure import write_result

from stablelm.demo import run_demo
from stablelm.training.metrics import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, nargs="?", default=Path("runs/demo"), help="the demo's directory")
    demo = parser.parse_args().demo
    if not (demo / "results.json").is_file():
        run_demo(demo, resume=True)
    steps = [record for record in read_metrics(demo / "run") if "kind" not in record]
    newest = sorted((demo / "run" / "checkpoints").glob("step-*/about.json"))[-1]
    run = json.loads((demo / "demo.json").read_text())["run"]
    result = {
        "sources": json.loads((demo / "results.json").read_text())["sources"],
        "windows": run["data"]["windows"],
        "epochs": run["data"]["epochs"],
        "precision": run["precision"],
        "steps": len(steps),
        "tokens": steps[-1]["tokens"],
        "seconds_in_steps": sum(record["seconds"] for record in steps),
        "median_tokens_per_second": statistics.median(record["tokens_per_second"] for record in steps),
    }
    print(write_result("demo", result, json.loads(newest.read_text())["hardware"]))


if __name__ == "__main__":
    main()
