"""Decoding and prefill on a CPU beside `transformers` and llama.cpp: 512 tokens read, 64 written, batch 1.

All sides have the same random weights (speed does not depend on them), two threads, and take turns round by
round in processes of their own (models of one process would share its caches and thread pools). Ours: the
model as it is in bf16, and packed in 8 and 4 bits by what `stablelm quantize` does without options.
`transformers` in bf16; llama.cpp with files that `stablelm convert --to gguf` writes, and Q4_K_M by its own
quantiser. `llama.cpp-q4_0+flash` is the same file with its flash attention. Needs the oracle environment:

    .venv-oracle/bin/python benchmarks/decode_cpu.py --preset stablelm-3b-4e1t --work /tmp/decode --only
        ours-int4 llama.cpp-q4_0 llama.cpp-q4_k_m        (all sides at once need 27 GB: take those of a row)
    … --long --prompt 3500 --only ours-int4 llama.cpp-q4_0 llama.cpp-q4_0+flash
    … --only ours-int4 --batch 8
    .venv-oracle/bin/python benchmarks/decode_cpu.py --preset stablelm-1m --work /tmp/tiny --prompt 32 --new 4

--long reads the prompt once a side and goes back to its end before each round, so that only decoding at that
depth takes turns; the prefill it tells is one measurement a side, not interleaved.

--cache int8 is q8_0 for llama.cpp where 32 divides the head dimension, and f16 where it does not, as in this
model (80): llama.cpp (`llama_init_from_model` in src/llama-context.cpp) refuses q8_0 keys or values with
flash attention there, q8_0 values without it everywhere, and lets q8_0 keys alone through without it, whose
heads then begin within a block and are read wrong."""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import interleave, peak_memory, ratio, summary, write_result

from stablelm.planning import hardware
from stablelm.planning.devices import copy_rate

SIDES = (
    "ours-bf16", "transformers-bf16", "ours-int8", "ours-int4",
    "llama.cpp-bf16", "llama.cpp-q8_0", "llama.cpp-q4_0", "llama.cpp-q4_k_m",
)  # fmt: skip
Q4_K_M = 15
"""Its number in llama.cpp's `llama_ftype`."""


def make_model(name: str, options: argparse.Namespace) -> Path:
    """What a side opens, made once from the same weights."""
    plain, kind = options.work / "plain", name.partition("-")[2]
    path = plain if kind == "bf16" else options.work / kind
    if name.startswith("llama"):
        kind = kind.partition("+")[0]
        path = options.work / f"{kind}.gguf"
    if path.exists():
        return path
    if kind == "q4_k_m":
        quantize_by_llama(make_model("llama.cpp-bf16", options), path, options.threads)
        return path
    if path == plain:
        words = ["init", plain, "--preset", options.preset, "--tokenizer", options.tokenizer]
        words += ["--dtype", "bf16", "--set", "vocab_size=50304"]
    elif name.startswith("llama"):
        words = ["convert", make_model("ours-bf16", options), path, "--to", "gguf", "--dtype", kind]
    else:
        words = ["quantize", make_model("ours-bf16", options), path, "--bits", kind[3:], "--tokens", "64"]
    subprocess.run([sys.executable, "-m", "stablelm", *map(str, words)], check=True)
    return path


def quantize_by_llama(source: Path, target: Path, threads: int) -> None:
    """What `llama-quantize SOURCE TARGET Q4_K_M` writes; the file is whole or absent."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = Q4_K_M, threads
    aside = target.with_suffix(".tmp")
    given = str(source).encode(), str(aside).encode(), ctypes.byref(parameters)
    if llama_cpp.llama_model_quantize(*given):
        raise SystemExit(f"llama.cpp could not quantise {source}; its message is above.")
    aside.rename(target)


def ours(path: str, options: argparse.Namespace):
    """prefill(ids, room for more) → None; decode(count) → None; rewind(length) → None, back to the end of
    the prompt."""
    from stablelm.inference.cpu_runner import runner_for
    from stablelm.interchange import open_path

    torch.set_num_threads(options.threads)
    model, _ = open_path(path)
    state: dict = {}

    @torch.inference_mode()
    def prefill(ids: list[int], room: int) -> None:
        state["runner"] = runner_for(model, options.cache)
        logits = state["runner"].prefill(torch.tensor([ids] * options.batch), None, len(ids) + room)
        state["first"] = state["next"] = logits.argmax(-1)

    @torch.inference_mode()
    def decode(count: int) -> None:
        for _ in range(count):
            state["next"] = state["runner"].step(state["next"]).argmax(-1)

    def rewind(length: int) -> None:
        state["runner"].trim(length)
        state["next"] = state["first"]

    return prefill, decode, rewind


def transformers_side(path: str, options: argparse.Namespace):
    """The same through `transformers`."""
    import transformers

    torch.set_num_threads(options.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    state: dict = {}

    @torch.inference_mode()
    def prefill(ids: list[int], room: int) -> None:
        out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        state["cache"], state["first"] = out.past_key_values, out.logits[:, -1:].argmax(-1)
        state["next"] = state["first"]

    @torch.inference_mode()
    def decode(count: int) -> None:
        for _ in range(count):
            out = model(state["next"], past_key_values=state["cache"], use_cache=True)
            state["next"] = out.logits[:, -1:].argmax(-1)

    def rewind(length: int) -> None:
        behind = state["cache"].get_seq_length() - length
        if behind:
            state["cache"].crop(-behind)
        state["next"] = state["first"]

    return prefill, decode, rewind


def llama_cpp(path: str, options: argparse.Namespace):
    """The same through llama-cpp-python."""
    import llama_cpp
    import numpy as np

    more = {"flash_attn": options.flash}
    if llama_cache(options) == "q8_0":
        more = {"type_k": 8, "type_v": 8, "flash_attn": True}  # 8 is q8_0
    model = llama_cpp.Llama(
        path, n_ctx=4096, n_batch=512, n_ubatch=512, n_threads=options.threads,
        n_threads_batch=options.threads, verbose=False, **more,
    )  # fmt: skip
    state: dict = {}

    def likeliest() -> int:
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())

    def prefill(ids: list[int], room: int) -> None:
        model.reset()
        model.eval(ids)
        state["first"] = state["next"] = likeliest()

    def decode(count: int) -> None:
        for _ in range(count):
            model.eval([state["next"]])
            state["next"] = likeliest()

    def rewind(length: int) -> None:
        model.n_tokens = length  # `eval` drops from its cache what lies behind
        state["next"] = state["first"]

    return prefill, decode, rewind


def llama_cache(options: argparse.Namespace) -> str:
    """The precision of llama.cpp's keys and values: q8_0 if --cache int8 and it can."""
    config = json.loads((options.work / "plain" / "config.json").read_text())
    head = config["hidden_size"] // config["num_attention_heads"]
    return "q8_0" if options.cache == "int8" and head % 32 == 0 else "f16"


def llama_build() -> dict[str, str]:
    """Version of llama-cpp-python, and what it was compiled for."""
    import llama_cpp

    return {"version": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode().strip()}


def serve(name: str, path: str, options: argparse.Namespace, vocabulary: int) -> None:
    """One side in its own process: a round for every line of standard input."""
    kinds = {"ours": ours, "transformers": transformers_side, "llama.cpp": llama_cpp}
    options.flash = name.endswith("+flash")
    prefill, decode, rewind = kinds[name.split("-")[0]](path, options)
    prompt, new = options.prompt, options.new
    ids = torch.randint(2, vocabulary, (prompt,), generator=torch.Generator().manual_seed(0)).tolist()

    def timed(function, *given) -> float:
        began = time.perf_counter()
        function(*given)
        return time.perf_counter() - began

    prefill(ids[:64] if options.long else ids, new), decode(min(new, 4))  # the warm-up
    reading = timed(prefill, ids, new) if options.long else 0.0
    print("ready", flush=True)
    for _ in sys.stdin:
        if options.long:
            rewind(prompt)
        else:
            reading = timed(prefill, ids, new)
        print(json.dumps([reading, timed(decode, new), peak_memory()]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="stablelm-3b-4e1t")
    parser.add_argument("--work", type=Path, required=True, help="where the models are made, and kept")
    parser.add_argument("--tokenizer", default="../shared/data/neox-tokenizer/tokenizer.json")
    parser.add_argument("--only", nargs="*", default=SIDES, help="names of sides (ours-int4, …)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1, help="texts at once, of our sides")
    parser.add_argument("--cache", choices=("int8", "bf16"), help="ours by default: int8 of 4 bits")
    parser.add_argument("--long", action="store_true", help="read once, decode at that depth in each round")
    parser.add_argument("--name", default="decode_cpu", help="of the result")
    parser.add_argument("--serve", nargs=3, metavar=("NAME", "PATH", "VOCABULARY"), help="internal: one side")
    options = parser.parse_args()
    if options.serve:
        name, path, vocabulary = options.serve
        serve(name, path, options, int(vocabulary))
        return
    names = options.only
    if unknown := [name for name in names if name.removesuffix("+flash") not in SIDES]:
        parser.error(f"{unknown[0]} is no side; there are {', '.join(SIDES)}, llama.cpp's also with +flash.")
    if options.batch > 1 and any(not name.startswith("ours") for name in names):
        parser.error("--batch is of our sides alone.")
    options.work.mkdir(parents=True, exist_ok=True)
    paths = {name: make_model(name, options) for name in names}
    vocabulary = json.loads((make_model("ours-bf16", options) / "config.json").read_text())["vocab_size"]
    vocabulary = min(vocabulary, 50_277)  # the ids that the tokenizer has
    setting = [f"--{key}={getattr(options, key)}" for key in ("threads", "prompt", "new", "work", "batch")]
    setting += [f"--cache={options.cache}"] if options.cache else []
    setting += ["--long"] if options.long else []
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
            if not (line := side.stdout.readline()):
                raise SystemExit(f"{name} ended; its message is above.")
            found[name].append(json.loads(line))
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
    setting = ("preset", "threads", "prompt", "new", "batch", "cache", "long")
    by_llama = any(name.startswith("llama") for name in names)
    result = {
        "setting": {key: getattr(options, key) for key in setting},
        "prefill_tokens_per_second": {n: 1 / summary(s)["median"] for n, s in prefill.items()},
        "decode_tokens_per_second": {n: 1 / summary(s)["median"] for n, s in decode.items()},
        "copy_bytes_per_second": bandwidth,
        "llama.cpp": llama_build() | {"cache": llama_cache(options)} if by_llama else None,
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
