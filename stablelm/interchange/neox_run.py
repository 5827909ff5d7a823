"""A run of ours as a GPT-NeoX YAML that reads back as the same run.

What GPT-NeoX has a key for is written in that key, as upstream spells it today (its gated MLP counts
`intermediate_size` three times; of Stability's fork, only what upstream has no other name for). The result is
read back, and whatever does not come back is put into the section `stablelm`, in our spelling: GPT-NeoX must
be given the file without it, and runs without what it says. Rejected: leaving such keys out, which makes
another run of it in silence; refusing them, which refuses every run (GPT-NeoX has no epochs)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from stablelm.config.mixture import NO_PATHS, DataConfig
from stablelm.config.neox import Values, is_neox, read_neox
from stablelm.config.neox_file import tokenizer_ids
from stablelm.config.run import RunConfig, from_reading
from stablelm.config.schema import apply_overrides, commented_yaml, read_yaml, validate
from stablelm.interchange.neox_config import network_keys


def run_to_neox(config: RunConfig) -> tuple[Values, list[str]]:
    """The YAML's keys and values, and our keys (dotted) that GPT-NeoX has no spelling for: those in the
    section `stablelm`."""
    values = _spelled(config)
    reading = read_neox(values, "converted")
    given = config.data.model_dump(mode="json", exclude_defaults=True)
    read = from_reading(replace(reading, values=reading.values | {"data": given}, faults=[]))
    rest = _difference(config.model_dump(mode="json"), read.model_dump(mode="json"))
    if config.steps is None:
        rest["steps"] = None
    if "model.vocab_size" not in reading.ours:
        rest["model"] = rest.get("model", {}) | {"vocab_size": config.model.vocab_size}
    if reading.faults or validate(DataConfig, reading.values["data"], "converted") != config.data:
        rest["data"] = given
    if rest:
        values["stablelm"] = rest
    back = from_reading(read_neox(values, "converted"))
    assert back == config, "a run that GPT-NeoX's keys and ours together do not spell"
    return values, _leaves(rest)


def converted(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The run as text in the other spelling, and our keys that GPT-NeoX has none for."""
    values = read_yaml(path)
    name = Path(path).name
    if is_neox(values, list(RunConfig.model_fields)):
        run = from_reading(read_neox(values, str(path), overrides), overrides)
        heading = f"The run of {name} in the keys of StableLM; `stablelm config convert` wrote it."
        return commented_yaml(RunConfig, heading, run.model_dump(mode="json")), []
    run = validate(RunConfig, apply_overrides(values, overrides), str(path))
    spelled, kept = run_to_neox(run)
    heading = f"# The run of {name} in GPT-NeoX's keys; `stablelm config convert` wrote it.\n"
    if kept:
        heading += (
            "# `stablelm` holds what GPT-NeoX has no key for; delete it before GPT-NeoX reads the file.\n"
        )
    return heading + "\n" + yaml.safe_dump(spelled, sort_keys=False, allow_unicode=True, width=100), kept


def _spelled(config: RunConfig) -> Values:
    model, batch, data, optimizer = config.model, config.batch, config.data, config.optimizer
    wide, neox = model.intermediate_size, data.neox
    tensor = config.parallel.tensor
    tokenizer = neox.tokenizer if neox else f"{data.path}/tokenizer.json"
    known = tokenizer_ids(tokenizer, "HFTokenizer")
    ids = known[0] if known else model.vocab_size
    divisor = next((n for n in (128, 64, 1) if -(-ids // (n * tensor)) * n * tensor == model.vocab_size), 128)
    windows, rest = divmod(config.evaluation.windows, batch.sequences)
    values: Values = {
        **network_keys(model),
        "seq-length": batch.sequence_length,
        "activation": "swiglu",
        "intermediate_size": 3 * wide,
        "use_bias_in_attn_linear": False,
        "make_vocab_size_divisible_by": divisor,
        "tokenizer-type": "HFTokenizer",
        "vocab-file": tokenizer,
        "optimizer": {
            "type": "Adam",
            "params": {"lr": optimizer.lr, "betas": list(optimizer.betas), "eps": optimizer.eps},
        },
        "weight-decay": optimizer.weight_decay,
        "gradient_clipping": optimizer.clip,
        "hidden-dropout": 0,
        "attention-dropout": 0,
        "lr-decay-style": "constant" if config.schedule.shape == "constant" else "cosine",
        "warmup": config.schedule.warmup,
        "min_lr": float(Fraction(str(config.schedule.floor)) * Fraction(str(optimizer.lr))),
        "train_batch_size": batch.sequences,
        "train_micro_batch_size_per_gpu": batch.micro_sequences,
        "pipe-parallel-size": 1,
        "model-parallel-size": tensor,
        "zero_optimization": {"stage": config.parallel.zero},
        "seed": config.seed,
        "save": config.out,
        "checkpoint-factor": config.checkpoint.every,
        "keep-last-n-checkpoints": config.checkpoint.keep,
        "eval-interval": config.evaluation.every,
        "log-interval": config.logging.every,
    }
    if config.checkpoint.permanent_every is not None:
        values["s3_sync_interval"] = config.checkpoint.permanent_every
    if config.recompute in ("none", "full"):
        values["checkpoint-activations"] = config.recompute == "full"
    if config.steps is not None:
        values |= {"train-iters": config.steps, "lr-decay-iters": config.steps}
    if windows and not rest:
        values["eval-iters"] = windows
    if config.precision == "fp32":
        values["precision"] = "fp32"
    else:  # also what has no spelling of its own
        values |= {"precision": "bfloat16", "bf16": {"enabled": True}}
    if config.init is not None:
        values |= {"load": config.init, "finetune": True}
    if neox is not None and neox.split is not None:
        values |= {"data-path": neox.paths[0], "split": neox.split}
    elif neox is not None:
        paths = [path for path in neox.paths if path != NO_PATHS]
        values |= {"train-data-paths": paths, "train-data-weights": neox.weights if paths else []}
    return values


def _difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Values:
    """What of `wanted` is otherwise in `found`, nested."""
    rest: Values = {}
    for name, value in wanted.items():
        if value != found[name]:
            nested = isinstance(value, Mapping) and value.keys() == found[name].keys()
            rest[name] = _difference(value, found[name]) if nested else value
    return rest


def _leaves(rest: Mapping[str, Any], above: str = "") -> list[str]:
    names = []
    for name, value in rest.items():
        inner = isinstance(value, Mapping) and not above
        names += _leaves(value, f"{name}.") if inner else [f"{above}{name}"]
    return names
