"""Fine-tuning the 2.8B model: memory of LoRA and QLoRA, and the time of a step beside `peft`'s.

Random weights (neither depends on them), batch 1, 512 tokens, every block recomputed, rank 16 on every
projection of the blocks. Each side is a process of its own that opens the model, makes one step to warm up,
then a step each time it is asked; sides take turns. Ours are the trainer's steps (`Tuner.train_step`):
`ours-bf16` (LoRA on bf16 weights), `ours-int4` (QLoRA: the bf16 files are rounded while they are opened).
`peft-bf16` is `transformers` + `peft` with gradient checkpointing, the same rank, targets, α, precision of
the adapter (float32) and fused AdamW. Memory is VmHWM of the process from its start, opening included; with
--memory each side runs alone, one after another. All at once need 21 GB. On a GPU (--device cuda) its memory
is told beside: the most that PyTorch's allocator had handed out, and had taken.

    .venv-oracle/bin/python benchmarks/finetune_3b.py --work /tmp/finetune --memory --steps 5
        --only ours-int4 ours-bf16
    .venv-oracle/bin/python benchmarks/finetune_3b.py --work /tmp/finetune --only ours-bf16 peft-bf16
    python benchmarks/finetune_3b.py --work /tmp/finetune --device cuda --name finetune_3b-gpu
    .venv-oracle/bin/python benchmarks/finetune_3b.py --work /tmp/tiny --preset stablelm-1m --length 128
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measure import interleave, peak_memory, ratio, summary, write_result

from stablelm.planning import hardware

SIDES = ("ours-bf16", "ours-int4", "peft-bf16")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = ["river", "town", "letter", "machine", "morning", "neighbour", "window", "garden", "answer", "road"]


def make_files(options: argparse.Namespace) -> tuple[Path, Path]:
    """The model, bf16, and examples that fill a row each; made once."""
    model, examples = options.work / "model", options.work / "examples.jsonl"
    options.work.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        command = ["init", str(model), "--preset", options.preset, "--tokenizer", options.tokenizer]
        more = ["--dtype", "bf16", "--set", "vocab_size=50304"]
        subprocess.run([sys.executable, "-m", "stablelm", *command, *more], check=True)
    pick = random.Random(0)
    texts = [" ".join(pick.choices(WORDS, k=2 * options.length)) for _ in range(8)]
    examples.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return model, examples


def ours(name: str, model: Path, examples: Path, options: argparse.Namespace):
    """step() → loss, by our trainer."""
    from stablelm.config.finetune import finetune_config
    from stablelm.finetuning.tuner import Tuner, prepare
    from stablelm.training.console import SilentConsole

    out = TemporaryDirectory()
    config = finetune_config(
        {
            "model": str(model), "out": out.name, "epochs": 100,
            "device": options.device, "recompute": "full",
            "data": {"paths": [str(examples)], "too_long": "truncate", "held_out_share": 0},
            "batch": {"sequences": 1, "micro_sequences": 1, "sequence_length": options.length},
            "adapter": {"rank": options.rank, "alpha": 2 * options.rank},
            "quantize": 4 if name.endswith("int4") else None,
        }
    )  # fmt: skip
    architecture, data = prepare(config)
    tuner = Tuner(data, config, config.run(architecture), SilentConsole())

    def step() -> float:
        assert Path(out.name).is_dir()  # kept for as long as the step is
        return tuner.train_step()["loss"]

    return step


def peft_side(name: str, model: Path, examples: Path, options: argparse.Namespace):
    """step() → loss, by `transformers` and `peft`."""
    import peft
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"))
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    network.to(options.device)
    network.config.use_cache = False
    network.gradient_checkpointing_enable({"use_reentrant": False})
    network.enable_input_require_grads()
    settings = {"r": options.rank, "lora_alpha": 2 * options.rank, "lora_dropout": 0.0}
    network = peft.get_peft_model(network, peft.LoraConfig(target_modules=TARGETS, **settings))
    network.train()
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=2e-4, weight_decay=0.0, fused=True)
    texts = [json.loads(line)["text"] for line in examples.read_text().splitlines()]
    # A row of ours begins with the end of the text before.
    each = [[tokenizer.eos_token_id or 0, *tokenizer(text)["input_ids"]] for text in texts]
    rows = [torch.tensor([ids[: options.length + 1]], device=options.device) for ids in each]
    made = 0

    def step() -> float:
        nonlocal made
        ids = rows[made % len(rows)]
        made += 1
        logits = network(input_ids=ids[:, :-1]).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def serve(name: str, options: argparse.Namespace) -> None:
    """One side in its own process: a step for every line of standard input."""
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    make = ours if name.startswith("ours") else peft_side
    step = make(name, options.work / "model", options.work / "examples.jsonl", options)
    opened = time.perf_counter() - began
    first = step()  # the warm-up
    print(json.dumps(["ready", opened, first, *memory(options.device)]), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()  # a number, so a GPU is done with it
        print(json.dumps([time.perf_counter() - began, loss, *memory(options.device)]), flush=True)


def memory(device: str) -> list[int]:
    """Peaks in bytes: of the process; on a GPU also what the allocator had handed out, and had taken."""
    if device != "cuda":
        return [peak_memory()]
    return [peak_memory(), torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]


def start(name: str, options: argparse.Namespace) -> tuple[subprocess.Popen, list]:
    """A side that has made its first step, and what it said then."""
    setting = ("threads", "length", "rank", "work", "device")
    side = subprocess.Popen(
        [sys.executable, __file__, *(f"--{key}={getattr(options, key)}" for key in setting), "--serve", name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = side.stdout.readline()
    if not said:
        raise SystemExit(f"{name} did not start; its message is above.")
    return side, json.loads(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="stablelm-3b-4e1t")
    parser.add_argument("--work", type=Path, required=True, help="where the model is made, and kept")
    parser.add_argument("--tokenizer", default="../shared/data/neox-tokenizer/tokenizer.json")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="*", default=SIDES, help=f"of {', '.join(SIDES)}")
    parser.add_argument("--steps", type=int, default=5, help="after the one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--memory", action="store_true", help="one side after another, each alone")
    parser.add_argument("--name", help="of the result")
    parser.add_argument("--serve", metavar="SIDE", help="internal: one side")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options)
        return
    make_files(options)
    found: dict[str, list[list[float]]] = {name: [] for name in options.only}
    opened: dict[str, list] = {}
    for group in [[name] for name in options.only] if options.memory else [list(options.only)]:
        sides = {}

        def one(name: str, sides=sides):
            def run() -> float:
                side = sides[name]
                side.stdin.write("go\n")
                side.stdin.flush()
                found[name].append(json.loads(side.stdout.readline()))
                return found[name][-1][0]

            return run

        try:
            for name in group:
                sides[name], opened[name] = start(name, options)
            interleave({name: one(name) for name in group}, options.steps)
        finally:
            for side in sides.values():
                side.stdin.close()
                side.wait(60)
    seconds = {name: [step[0] for step in steps] for name, steps in found.items()}
    setting = ("preset", "device", "threads", "length", "rank", "steps", "memory")
    result = {
        "setting": {key: getattr(options, key) for key in setting},
        "peak_memory_bytes": {name: int(steps[-1][2]) for name, steps in found.items()},
        "gpu_peak_bytes": {
            name: dict(zip(("allocated", "reserved"), map(int, steps[-1][3:]), strict=True))
            for name, steps in found.items() if options.device == "cuda"
        },
        "seconds_to_open": {name: said[1] for name, said in opened.items()},
        "first_loss": {name: said[2] for name, said in opened.items()},
        "step_seconds": {name: summary(each) for name, each in seconds.items()},
        "ratios": {
            f"{mine} : {other}": ratio(seconds[mine], seconds[other])
            for mine in seconds if mine.startswith("ours")
            for other in seconds if not other.startswith("ours") and not options.memory
        },
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    name = options.name or ("finetune_3b-memory" if options.memory else "finetune_3b")
    print(write_result(name, result, hardware(torch.device(options.device))))


if __name__ == "__main__":
    main()
