"""From `exec` to the first token of a 16-token prompt, and the peak memory of it: a packed 4-bit model.

Each run is `stablelm generate` in a process of its own: Python, PyTorch and the kernels of Numba's cache are
loaded, the weights are mapped, the prompt is read, one token is written to a pipe, whose first byte is the
end. One run before the others fills the page cache and the kernel cache. Peak memory is VmHWM of that
process at its exit; the pages of mapped files count. Needs no oracle:

    .venv/bin/python benchmarks/first_token.py /tmp/decode/int4          (made by benchmarks/decode_cpu.py)
    .venv/bin/python benchmarks/first_token.py MODEL --rounds 5 --threads 2
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import summary, write_result

from stablelm.config.model import from_huggingface
from stablelm.inference.cpu_cache import bytes_per_token
from stablelm.interchange.huggingface import read_config
from stablelm.planning import hardware
from stablelm.tokenizer import Tokenizer

TOKENS = 16
RUN = """
import atexit, sys
def told():
    with open("/proc/self/status") as file:
        sys.stderr.write(next(line for line in file if line.startswith("VmHWM")))
atexit.register(told)
from stablelm.cli.main import main
main()
"""


def prompt_of(tokenizer: Tokenizer) -> str:
    """A text of exactly 16 tokens."""
    words = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and"]
    text = words[0]
    while len(tokenizer.encode(text)) < TOKENS:
        text += " " + words[len(text.split()) % len(words)]
    while len(tokenizer.encode(text)) > TOKENS:  # the last word was several tokens
        text = text[:-1]
    assert len(tokenizer.encode(text)) == TOKENS
    return text


def once(model: Path, prompt: str) -> tuple[float, int]:
    """Seconds from exec to the first byte of text, and peak memory in bytes."""
    settings = ["--max-new-tokens", "1", "--temperature", "0", "--quiet", "--"]
    command = [sys.executable, "-c", RUN, "generate", str(model), *settings, prompt]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    seconds = time.perf_counter() - began
    _, said = process.communicate()
    lines = [line for line in said.decode().splitlines() if line.startswith("VmHWM")]
    if process.returncode or not first or not lines:
        raise SystemExit(said.decode())
    return seconds, int(lines[0].split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a directory that `stablelm quantize` wrote")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="first_token", help="of the result")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)  # what is told of the machine
    config = from_huggingface(read_config(options.model), str(options.model))
    prompt = prompt_of(Tokenizer.from_file(options.model))
    once(options.model, prompt)
    runs = [once(options.model, prompt) for _ in range(options.rounds)]
    size = sum(file.stat().st_size for file in options.model.glob("*.safetensors"))
    cache = bytes_per_token(config, "int8") * (TOKENS + 1)
    limit = int(1.15 * size) + cache + 400_000_000
    result = {
        "setting": {"prompt": TOKENS, "threads": options.threads, "rounds": options.rounds},
        "seconds_to_first_token": summary([seconds for seconds, _ in runs]),
        "seconds_limit": 3.0,
        "peak_memory_bytes": max(memory for _, memory in runs),
        "file_bytes": size,
        "cache_bytes": cache,
        "memory_limit_bytes": limit,
    }
    print(json.dumps(result, indent=2))
    print(write_result(options.name, result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
