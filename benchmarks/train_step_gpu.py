"""One training step of the 3B model on a GPU beside `transformers`, and what it needs beside `stablelm plan`.

Both sides: the 2.8B network of random weights, sequences of 4,096 tokens, float32 weights and moments, bf16
arithmetic, fused AdamW, gradient clipping. Ours is a step of `stablelm train` as it is: samples from token
files, guard, clipping, record. The peer is what a user of `transformers` writes: `StableLmForCausalLM` with
SDPA under `torch.autocast`, compiled. Each side first looks for its best micro-batch among `--batches`, one
step being one micro-batch; then both stay in memory and take turns.

    python benchmarks/train_step_gpu.py                               # a GPU of 140 GB
    python benchmarks/train_step_gpu.py --only stablelm               # one of 80 GB: ours alone
    python benchmarks/train_step_gpu.py --small --device cpu          # that it runs
"""

import argparse
import gc
import json
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
from measure import interleave, ratio, summary, write_result

from stablelm.config import ModelConfig
from stablelm.config.model import to_huggingface
from stablelm.config.optimization import OptimizerConfig
from stablelm.config.recipe import DataRecipe
from stablelm.config.run import run_config
from stablelm.data.preparation import prepare
from stablelm.model import StableLM
from stablelm.planning import hardware
from stablelm.planning.flops import flops_per_token
from stablelm.planning.layout import Layout
from stablelm.planning.memory import memory_of
from stablelm.tokenizer.training import train_tokenizer
from stablelm.training import Trainer
from stablelm.training.building import Start, set_arithmetic
from stablelm.training.console import SilentConsole
from stablelm.training.optimizer import make_optimizer
from stablelm.training.parallel.apply import parallelize

SMALL = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
RATES = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bf16 FLOP/s of the data sheets."""


class OnDevice(Trainer):
    """The trainer with initial weights drawn where they are used: a CPU takes a minute for them."""

    def build(self, dtype):
        with torch.device("meta"):
            model = StableLM(self.config.model)
        model.to_empty(device=self.device)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.02)
                else:
                    parameter.fill_(1.0)
        set_arithmetic(model, self.config, self.device, dtype)
        return parallelize(model, None, self.config, self.device.type), Start()


def make_data(folder: Path) -> Path:
    """Token files of Python's own library."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    (folder / "text").mkdir()
    for number, text in enumerate(texts):
        (folder / "text" / f"{number}.txt").write_text(text, encoding="utf-8")
    train_tokenizer(texts[:40], 1024, folder / "tokenizer")
    recipe = DataRecipe(
        out=str(folder / "prepared"), tokenizer=str(folder / "tokenizer"),
        sources=[{"name": "python", "paths": [str(folder / "text")]}],
    )  # fmt: skip
    return prepare(recipe)


def make_ours(options, data: Path, batch: int):
    """A closure that makes one step and returns its loss."""
    config = run_config({
        "out": str(data.parent / "run"), "model": options.model, "device": options.device,
        "data": {"path": str(data), "epochs": {"python": 200}},
        "batch": {"sequences": batch, "micro_sequences": batch, "sequence_length": options.length},
        "precision": "bf16", "compile": options.compile, "kernels": options.kernels,
        "fp8": options.fp8, "loss_chunk": options.chunk, "recompute": options.recompute,
        "schedule": {"warmup": 0.5},
    })  # fmt: skip
    trainer = OnDevice(config, SilentConsole())
    return lambda: trainer.train_step()["loss"]


def make_theirs(options, _: Path, batch: int):
    """The same in transformers, on random tokens."""
    import transformers

    values = to_huggingface(ModelConfig(**options.model), "float32")
    known = {k: v for k, v in values.items() if k not in ("architectures", "model_type")}
    known |= {"use_cache": False, "attn_implementation": "sdpa"}
    with torch.device("meta"):
        model = transformers.StableLmForCausalLM(transformers.StableLmConfig(**known)).float()
    model.to_empty(device=options.device)
    model.apply(_again)  # what to_empty leaves undefined of buffers
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    model.train()
    optimizer = make_optimizer(model, OptimizerConfig())
    run = torch.compile(model) if options.compile else model
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        size = (batch, options.length + 1)
        ids = torch.randint(0, options.model["vocab_size"], size, generator=generator).to(options.device)
        with torch.autocast(options.device, torch.bfloat16):
            labels = ids[:, 1:].contiguous()  # `shift_labels`: every position has its label, as on our side
            loss = run(input_ids=ids[:, :-1], labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _again(module) -> None:
    if hasattr(module, "rope_init_fn") or "RotaryEmbedding" in type(module).__name__:
        fresh = type(module)(module.config)
        module.inv_freq = fresh.inv_freq.to(module.inv_freq.device)
        if hasattr(module, "original_inv_freq"):
            module.original_inv_freq = module.inv_freq


SIDES = {"stablelm": make_ours, "transformers": make_theirs}


def wait(options) -> None:
    """Until the device has done everything."""
    if options.device == "cuda":
        torch.cuda.synchronize()


def seconds_of(options, step, steps: int) -> float:
    """Seconds a step, over `steps` steps."""
    wait(options)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait(options)
    return (time.perf_counter() - began) / steps


def forget(options) -> int:
    """Frees what a side held → the peak of the device's tensors since the last call, in bytes."""
    gc.collect()
    torch._dynamo.reset()
    if options.device != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def best_batch(options, name: str, data: Path) -> dict[int, dict[str, float]]:
    """Micro-batch → tokens a second and peak bytes of a side, the sizes that fit."""
    found = {}
    for batch in options.batches:
        forget(options)
        step = None
        try:
            began = time.perf_counter()
            step = SIDES[name](options, data, batch)
            step()
            wait(options)
            first = time.perf_counter() - began
            step()
            rate = batch * options.length / seconds_of(options, step, options.steps)
        except torch.OutOfMemoryError:
            print(f"{name}, {batch} sequences: out of memory", flush=True)
            break
        finally:
            del step
            peak = forget(options)
        found[batch] = {"tokens_per_second": rate, "peak_bytes": peak, "first_step_seconds": first}
        print(f"{name}, {batch} sequences: {rate:,.0f} tokens/s, peak {peak / 2**30:.1f} GiB, "
              f"first step after {first:.0f} s", flush=True)  # fmt: skip
    return found


def profile(options, data: Path, batch: int) -> None:
    """Prints where the time of our step goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    step = SIDES[options.only or "stablelm"](options, data, batch)
    for _ in range(3):
        step()
    wait(options)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device == "cuda")
    with record(activities=kinds) as profiler:
        for _ in range(2):
            step()
        wait(options)
    key = f"self_{options.device}_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90))


def numbers(text: str) -> list[int]:
    """2,4 → [2, 4]."""
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="a network of 1 million weights")
    parser.add_argument("--only", choices=SIDES, help="one side alone")
    parser.add_argument(
        "--batches", type=lambda text: [int(n) for n in text.split(",")], default=[2, 4, 6, 8]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps in a round")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens whose logits are alive at once")
    parser.add_argument("--kernels", choices=("pytorch", "triton"), help="ours; default: as a run")
    parser.add_argument("--fp8", choices=("tensorwise", "rowwise"), help="ours in 8-bit floating point")
    parser.add_argument("--together", type=int, default=4, help="micro-batch of the rounds, both in memory")
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, for one batch")
    parser.add_argument("--out", default="train_step_gpu", help="name of the result")
    options = parser.parse_args()
    options.model = SMALL if options.small else ModelConfig().model_dump()
    options.length = options.model["max_position_embeddings"]
    options.compile = not options.eager
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        if options.profile:
            return profile(options, data, options.batches[0])
        measure(options, data)


def planned_bytes(options, batch: int) -> int:
    """What `stablelm plan` counts for our side's tensors."""
    layout = Layout(
        1, 1, 1, 1, False, batch, 1, options.length, options.recompute, "bf16", options.chunk,
        compiled=options.device == "cuda" and options.compile,
    )  # fmt: skip
    return memory_of(ModelConfig(**options.model), layout).total


def measure(options, data: Path) -> None:
    """The whole comparison, printed and written."""
    names = [options.only] if options.only else list(SIDES)
    tried = {name: best_batch(options, name, data) for name in names}
    best = {name: max(found, key=lambda n: found[n]["tokens_per_second"]) for name, found in tried.items()}
    together = options.together if len(names) == 2 else best[names[0]]
    steps = {name: SIDES[name](options, data, together) for name in names}
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}
    sides = {name: lambda s=step: seconds_of(options, s, options.steps) for name, step in steps.items()}
    seconds = interleave(sides, options.rounds)
    a_token = {
        name: [value / (together * options.length) for value in values] for name, values in seconds.items()
    }
    rates = {name: 1 / summary(values)["median"] for name, values in a_token.items()}
    flops = flops_per_token(ModelConfig(**options.model), options.length)
    planned = {batch: planned_bytes(options, batch) for batch in options.batches}
    device = hardware(torch.device(options.device))
    rate = next((value for key, value in RATES.items() if key in str(device.get("name"))), None)
    result = {
        "device": device.get("name"),
        "cuda": torch.version.cuda,
        "best_micro_batch": best,
        "micro_batch": together,
        "tried": tried,
        "seconds_per_step": {name: summary(values) for name, values in seconds.items()},
        "tokens_per_second": rates,
        "flops_per_token": flops,
        "mfu": {name: value * flops / rate for name, value in rates.items()} if rate else None,
        "planned_bytes": planned,
        "first_losses": losses,
    }
    if len(names) == 2:
        result["speed_ratio"] = ratio(a_token["stablelm"], a_token["transformers"])
        result["ratio_of_the_best"] = (
            tried["stablelm"][best["stablelm"]]["tokens_per_second"]
            / tried["transformers"][best["transformers"]]["tokens_per_second"]
        )
    if "stablelm" in names and options.device == "cuda":
        peaks = {batch: found["peak_bytes"] for batch, found in tried["stablelm"].items()}
        result["planned_to_peak"] = {batch: planned[batch] / peak for batch, peak in peaks.items()}
    path = write_result(options.out, result, device)
    print(json.dumps(result, indent=2))
    print(path)


if __name__ == "__main__":
    main()
