"""One training step on a CPU beside `transformers`, same weights, same batches.

34M parameters (8 layers, hidden 512, 8 heads, MLP 1,408, vocabulary 8,192), batch 4 × 512; float32 master
weights, bf16 arithmetic, fused AdamW, gradient clipping at 1.0 on both sides. The peer is what a user of
`transformers` writes: `StableLmForCausalLM` with its default attention (SDPA) under `torch.autocast`. Needs
the oracle environment:

    .venv-oracle/bin/python benchmarks/train_step_cpu.py
"""

import argparse
import json
import time

import torch
from measure import in_fresh_process, interleave, peak_memory, ratio, summary, write_result

from stablelm.config import ModelConfig
from stablelm.config.model import to_huggingface
from stablelm.config.optimization import OptimizerConfig
from stablelm.model import StableLM
from stablelm.planning import hardware, matmul_peak
from stablelm.training.optimizer import make_optimizer

CONFIG = ModelConfig(
    vocab_size=8192, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=1408,
    max_position_embeddings=512,
)  # fmt: skip
BATCH, LENGTH, CLIP = 4, 512, 1.0


def batches():
    """Endless random batches, the same on both sides."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(0, CONFIG.vocab_size, (BATCH, LENGTH + 1), generator=generator)


def make_ours():
    """A closure that makes one step and returns the loss."""
    model = StableLM(CONFIG, seed=1)
    model.compute_dtype = torch.bfloat16
    optimizer, data = make_optimizer(model, OptimizerConfig()), batches()

    def step() -> float:
        ids = next(data)
        loss = model(ids[:, :-1], labels=ids[:, 1:]) / (BATCH * LENGTH)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def make_theirs():
    """The same in transformers."""
    import transformers

    known = {
        k: v for k, v in to_huggingface(CONFIG, "float32").items() if k not in ("architectures", "model_type")
    }
    model = transformers.StableLmForCausalLM(transformers.StableLmConfig(**known))
    model.load_state_dict(StableLM(CONFIG, seed=1).state_dict())
    model.train()
    optimizer, data = make_optimizer(model, OptimizerConfig()), batches()

    def step() -> float:
        ids = next(data)
        with torch.autocast("cpu", torch.bfloat16):
            labels = ids[:, 1:].contiguous()  # `shift_labels`: every position has its label, as on our side
            loss = model(input_ids=ids[:, :-1], labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


SIDES = {"stablelm": make_ours, "transformers": make_theirs}


def timed(step, steps: int):
    """Seconds a step, over `steps` steps."""

    def run() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - began) / steps

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--memory", choices=SIDES, help="internal: one side's peak memory")
    parser.add_argument("--profile", action="store_true", help="print where the time of our step goes")
    options = parser.parse_args()
    if options.memory:
        step = SIDES[options.memory]()
        for _ in range(4):
            step()
        print(json.dumps({"bytes": peak_memory()}))
        return
    if options.profile:
        from torch.profiler import ProfilerActivity, profile

        for name, make in SIDES.items():
            step = make()
            step()
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                for _ in range(4):
                    step()
            print(name)
            print(
                profiler.key_averages().table(
                    sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=50
                )
            )
        return
    steps = {name: make() for name, make in SIDES.items()}
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}  # also the warm-up
    seconds = interleave({name: timed(step, options.steps) for name, step in steps.items()}, options.rounds)
    memory = {name: in_fresh_process("--memory", name)["bytes"] for name in SIDES}
    tokens = BATCH * LENGTH
    result = {
        "seconds_per_step": {name: summary(values) for name, values in seconds.items()},
        "tokens_per_second": {name: tokens / summary(values)["median"] for name, values in seconds.items()},
        "speed_ratio": ratio(seconds["stablelm"], seconds["transformers"]),
        "peak_memory_bytes": memory,
        "memory_ratio": memory["stablelm"] / memory["transformers"],
        "first_losses": losses,
        "matmul_peak_bf16_gflops": matmul_peak("cpu", torch.bfloat16) / 1e9,
    }
    path = write_result("train_step_cpu", result, hardware(torch.device("cpu")))
    print(json.dumps(result, indent=2))
    print(path)


if __name__ == "__main__":
    main()
