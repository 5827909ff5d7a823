"""Decoding and prefill on a CPU beside `transformers` and llama.cpp: 512 tokens read, 64 written, batch 1.

All sides have the same random weights (speed does not depend on them), two threads, and take turns round by
round in processes of their own (models of one process would share its caches and thread pools). Ours: the
model as it is in bf16, and packed in 8 and 4 bits. `transformers` in bf16; llama.cpp with files that
`stablelm convert --to gguf` writes (Q4_K_M needs `llama-quantize`; give such a file with --gguf q4_k_m=FILE).
Needs the oracle environment:

    .venv-oracle/bin/python benchmarks/decode_cpu.py --preset stablelm-3b-4e1t --work /tmp/decode --only
        ours-int4 llama.cpp-q4_0                (all sides at once need 27 GB: take those of a row together)
    … --prompt 3500 --cache int8                (llama.cpp takes q8_0 only where 32 divides the head)
    … --only ours-int4 --batch 8
    .venv-oracle/bin/python benchmarks/decode_cpu.py --preset stablelm-1m --work /tmp/tiny --prompt 32 --new 4
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import interleave, peak_memory, ratio, summary, write_result

from stablelm.planning import hardware
from stablelm.planning.devices import copy_rate

GGUF = {"bf16": "bf16", "q8_0": "q8_0", "q4_0": "q4_0"}


def make_models(work: Path, preset: str, tokenizer: str) -> dict[str, Path]:
    """Every file that a side needs, made once; names say what they hold."""
    plain = work / "plain"
    paths = {"ours-bf16": plain, "transformers-bf16": plain}
    stablelm = [sys.executable, "-m", "stablelm"]
    init = ["init", str(plain), "--preset", preset, "--tokenizer", tokenizer, "--dtype", "bf16"]
    commands = [(plain, [*stablelm, *init, "--set", "vocab_size=50304"])]
    for bits in (8, 4):
        packed = work / f"int{bits}"
        paths[f"ours-int{bits}"] = packed
        command = [*stablelm, "quantize", str(plain), str(packed), "--bits", str(bits), "--tokens", "64"]
        commands.append((packed, command))
    for name, kind in GGUF.items():
        file = work / f"{name}.gguf"
        paths[f"llama.cpp-{name}"] = file
        commands.append(
            (file, [*stablelm, "convert", str(plain), str(file), "--to", "gguf", "--dtype", kind])
        )
    for path, command in commands:
        if not path.exists():
            subprocess.run(command, check=True)
    return paths


def ours(path: str, options: argparse.Namespace):
    """prefill(ids) → None, decode(count) → None."""
    from stablelm.inference.cpu_runner import runner_for
    from stablelm.interchange import open_path

    torch.set_num_threads(options.threads)
    model, _ = open_path(path)
    state: dict = {}

    @torch.inference_mode()
    def prefill(ids: list[int], room: int) -> None:
        state["runner"] = runner_for(model, options.cache)
        logits = state["runner"].prefill(torch.tensor([ids] * options.batch), None, len(ids) + room)
        state["next"] = logits.argmax(-1)

    @torch.inference_mode()
    def decode(count: int) -> None:
        for _ in range(count):
            state["next"] = state["runner"].step(state["next"]).argmax(-1)

    return prefill, decode


def transformers_side(path: str, options: argparse.Namespace):
    """The same through `transformers`."""
    import transformers

    torch.set_num_threads(options.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    state: dict = {}

    @torch.inference_mode()
    def prefill(ids: list[int], room: int) -> None:
        out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        state["cache"], state["next"] = out.past_key_values, out.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def decode(count: int) -> None:
        for _ in range(count):
            out = model(state["next"], past_key_values=state["cache"], use_cache=True)
            state["next"] = out.logits[:, -1:].argmax(-1)

    return prefill, decode


def llama_cpp(path: str, options: argparse.Namespace):
    """The same through llama-cpp-python."""
    import llama_cpp

    more = {"type_k": 8, "type_v": 8, "flash_attn": True} if options.cache == "int8" else {}  # 8 is q8_0
    model = llama_cpp.Llama(
        path, n_ctx=4096, n_batch=512, n_ubatch=512, n_threads=options.threads,
        n_threads_batch=options.threads, verbose=False, **more,
    )  # fmt: skip

    def prefill(ids: list[int], room: int) -> None:
        model.reset()
        model.eval(ids)

    def decode(count: int) -> None:
        for _ in range(count):
            model.eval([model.sample(temp=0.0)])

    return prefill, decode


def llama_build() -> dict[str, str]:
    """Version of llama-cpp-python, and what it was compiled for."""
    import llama_cpp

    return {"version": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode().strip()}


def serve(name: str, path: str, options: argparse.Namespace, vocabulary: int) -> None:
    """One side in its own process: a round for every line of standard input."""
    kinds = {"ours": ours, "transformers": transformers_side, "llama.cpp": llama_cpp}
    prefill, decode = kinds[name.split("-")[0]](path, options)
    prompt, new = options.prompt, options.new
    ids = [
        int(i) for i in torch.randint(2, vocabulary, (prompt,), generator=torch.Generator().manual_seed(0))
    ]
    prefill(ids, new), decode(min(new, 4))  # the warm-up
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        prefill(ids, new)
        middle = time.perf_counter()
        decode(new)
        ended = time.perf_counter()
        print(json.dumps([middle - began, ended - middle, peak_memory()]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="stablelm-3b-4e1t")
    parser.add_argument("--work", type=Path, required=True, help="where the models are made, and kept")
    parser.add_argument("--tokenizer", default="../shared/data/neox-tokenizer/tokenizer.json")
    parser.add_argument(
        "--gguf", action="append", default=[], metavar="NAME=FILE", help="a further llama.cpp side"
    )
    parser.add_argument("--only", nargs="*", help="names of sides (ours-int4, llama.cpp-q4_0, …)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1, help="texts at once, of our sides")
    parser.add_argument("--cache", choices=("int8", "bf16"), help="int8 is also q8_0 of llama.cpp")
    parser.add_argument("--name", default="decode_cpu", help="of the result")
    parser.add_argument("--serve", nargs=3, metavar=("NAME", "PATH", "VOCABULARY"), help="internal: one side")
    options = parser.parse_args()
    if options.serve:
        name, path, vocabulary = options.serve
        serve(name, path, options, int(vocabulary))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    paths = make_models(options.work, options.preset, options.tokenizer)
    paths |= {f"llama.cpp-{n}": Path(file) for n, _, file in (entry.partition("=") for entry in options.gguf)}
    vocabulary = json.loads((paths["ours-bf16"] / "config.json").read_text())["vocab_size"]
    vocabulary = min(vocabulary, 50_277)  # the ids that the tokenizer has
    names = options.only or list(paths)
    setting = [f"--{key}={getattr(options, key)}" for key in ("threads", "prompt", "new", "work", "batch")]
    setting += [f"--cache={options.cache}"] if options.cache else []
    sides = {
        name: subprocess.Popen(
            [sys.executable, __file__, *setting, "--serve", name, str(paths[name]), str(vocabulary)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in names
    }  # fmt: skip
    found: dict[str, list[list[float]]] = {name: [] for name in names}

    def one(name: str):
        def run() -> float:
            side = sides[name]
            side.stdin.write("go\n")
            side.stdin.flush()
            found[name].append(json.loads(side.stdout.readline()))
            return sum(found[name][-1][:2])

        return run

    try:
        for name, side in sides.items():
            if side.stdout.readline() != "ready\n":
                raise SystemExit(f"{name} did not start; its message is above.")
        bandwidth = copy_rate(torch.device("cpu"))
        interleave({name: one(name) for name in names}, options.rounds)
    finally:
        for side in sides.values():
            side.stdin.close()
            side.wait(60)
    prefill = {
        name: [r[0] / options.prompt / options.batch for r in rounds] for name, rounds in found.items()
    }
    decode = {name: [r[1] / options.new / options.batch for r in rounds] for name, rounds in found.items()}
    setting = ("preset", "threads", "prompt", "new", "batch", "cache")
    result = {
        "setting": {key: getattr(options, key) for key in setting},
        "prefill_tokens_per_second": {n: 1 / summary(s)["median"] for n, s in prefill.items()},
        "decode_tokens_per_second": {n: 1 / summary(s)["median"] for n, s in decode.items()},
        "copy_bytes_per_second": bandwidth,
        "llama.cpp": llama_build() if any(name.startswith("llama") for name in names) else None,
        "peak_memory_bytes": {name: rounds[-1][2] for name, rounds in found.items()},
        "ratios": {
            f"{mine} : {other}": {
                "decode": ratio(decode[mine], decode[other]), "prefill": ratio(prefill[mine], prefill[other]),
            }
            for mine in names if mine.startswith("ours")
            for other in names if not other.startswith("ours")
        },
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    print(write_result(options.name, result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
