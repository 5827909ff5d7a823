"""GPT-NeoX checkpoints as GPT-NeoX writes them, and read back, without a line of `stablelm.interchange`.

Written from the format's description (file names, keys, cuts, the three QKV orders) with explicit loops over
heads, so that a mistake in the package's table is not repeated here."""

import random
import re
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

Weights = dict[str, Tensor]


def yaml_of(config, width: int = 1, mlp: str = "new", sequential: bool = False, **changes) -> dict:
    """Keys as a run of this architecture has them; `changes` may remove one with None."""
    values = {
        "pipe-parallel-size": 0 if sequential else 1,
        "model-parallel-size": width,
        "num-layers": config.num_hidden_layers,
        "hidden-size": config.hidden_size,
        "num-attention-heads": config.num_attention_heads,
        "seq-length": config.max_position_embeddings,
        "max-position-embeddings": config.max_position_embeddings,
        "norm": "layernorm",
        "layernorm_epsilon": config.layer_norm_eps,
        "pos-emb": "rotary",
        "rotary_pct": config.partial_rotary_factor,
        "rotary_emb_base": config.rope_theta,
        "intermediate_size": config.intermediate_size * (3 if mlp == "new" else 1),
        "mlp_type": "gated",
        "activation": "silu",
        "no-weight-tying": True,
        "gpt_j_residual": config.use_parallel_residual,
        "gpt_j_tied": config.use_parallel_residual,
        "output_layer_parallelism": "column",
        "use_bias_in_norms": config.use_norm_bias,
        "use_bias_in_attn_linear": config.use_qkv_bias,
        "use_bias_in_mlp": False,
        "init_method_std": config.initializer_range,
        "optimizer": {"type": "Adam", "params": {"lr": 3.2e-4}},
        "attention-config": [[["flash"], config.num_hidden_layers]],
        "tokenizer-type": "HFTokenizer",
        "vocab-file": "/gone/tokenizer.json",
    }
    if config.num_key_value_heads != config.num_attention_heads:
        values |= {"attention_head_type": "groupedquery", "num_kv_heads": config.num_key_value_heads}
    values |= changes
    return {key: value for key, value in values.items() if value is not None}


def qkv_of_rank(
    weights: Weights, block: str, part: str, config, layout: str, width: int, rank: int
) -> Tensor:
    """The fused rows of one rank, taken row range by row range."""
    q, k, v = (weights[f"{block}self_attn.{which}_proj.{part}"] for which in "qkv")
    size, heads, shared = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    my_heads = range(rank * heads // width, (rank + 1) * heads // width)
    my_shared = range(rank * shared // width, (rank + 1) * shared // width)
    rows: list[Tensor] = []
    if layout == "concatenated":
        for matrix, mine in ((q, my_heads), (k, my_shared), (v, my_shared)):
            rows += [matrix[head * size + row] for head in mine for row in range(size)]
    elif layout == "interleaved":
        assert heads == shared
        for head in my_heads:
            for matrix in (q, k, v):
                rows += [matrix[head * size + row] for row in range(size)]
    else:  # each query head, then its equal share of the keys' rows and of the values'
        share = size * shared // heads
        assert share * heads == size * shared
        for head in my_heads:
            rows += [q[head * size + row] for row in range(size)]
            for matrix in (k, v):
                rows += [matrix[head * share + row] for row in range(share)]
    return torch.stack(rows)


def layers_of(
    weights: Weights, config, *, layout: str, mlp: str, width: int, rank: int
) -> dict[int, Weights]:
    """What one rank stores, by pipeline layer."""
    vocab, wide, hidden = (
        n // width for n in (config.vocab_size, config.intermediate_size, config.hidden_size)
    )
    words, inner, across = (slice(rank * n, (rank + 1) * n) for n in (vocab, wide, hidden))
    found: dict[int, Weights] = {0: {"word_embeddings.weight": weights["model.embed_tokens.weight"][words]}}
    for index in range(config.num_hidden_layers):
        block = f"model.layers.{index}."
        layer = found[index + 2] = {}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            for part in ("weight", "bias"):
                if (name := f"{block}{norm}.{part}") in weights:
                    layer[f"{norm}.{part}"] = weights[name]
        for part in ("weight", "bias"):
            if f"{block}self_attn.q_proj.{part}" in weights:
                layer[f"attention.query_key_value.{part}"] = qkv_of_rank(
                    weights, block, part, config, layout, width, rank
                )
        layer["attention.dense.weight"] = weights[f"{block}self_attn.o_proj.weight"][:, across]
        gate, up, down = (weights[f"{block}mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        if mlp == "new":
            layer["mlp.linear1.weight"] = torch.cat([up[inner], gate[inner]])
            layer["mlp.linear2.weight"] = down[:, inner]
        else:
            layer["mlp.w1.weight"], layer["mlp.w3.weight"] = gate[inner], up[inner]
            layer["mlp.w2.weight"] = down[:, inner]
    last = config.num_hidden_layers
    norm = {
        f"norm.{p}": weights[f"model.norm.{p}"] for p in ("weight", "bias") if f"model.norm.{p}" in weights
    }
    found[last + 3] = norm
    found[last + 4] = {"final_linear.weight": weights["lm_head.weight"][words]}
    return {
        at: {key: value.clone().contiguous() for key, value in tensors.items()}
        for at, tensors in found.items()
    }


def state_of(config, width: int, step: int) -> dict:
    """What a run's mp_rank file holds beside weights, NumPy's and Python's random states included."""
    return {
        "module": None, "optimizer": None, "lr_scheduler": {"num_iters": step}, "skipped_steps": 0,
        "global_steps": step, "dp_world_size": 2, "mp_world_size": width, "iteration": step,
        "param_shapes": [{"sequential.0.word_embeddings.weight": torch.Size([3, 4])}],
        "sparse_tensor_module_names": set(), "ds_version": "0.10",
        "args": {
            "num_layers": config.num_hidden_layers, "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "max_position_embeddings": config.max_position_embeddings, "make_vocab_size_divisible_by": 128,
            "padded_vocab_size": config.vocab_size, "tokenizer_type": "HFTokenizer",
            "model_parallel_size": width,
        },
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),  # noqa: NPY002 (it is what GPT-NeoX saves)
        "torch_rng_state": torch.get_rng_state(), "cuda_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }  # fmt: skip


def write(
    save: Path,
    weights: Weights,
    config,
    *,
    sequential=False,
    width=1,
    mlp="new",
    layout="interleaved",
    step=1000,
    settings: dict | None = None,
    latest=True,
    extra: dict[int, Weights] | None = None,
) -> Path:
    """Writes SAVE/global_step{step} and returns it; `settings` {} leaves the YAML out, `extra` adds tensors
    by layer, on every rank."""  # fmt: skip
    tag = save / f"global_step{step}"
    tag.mkdir(parents=True)
    if settings is None:
        settings = yaml_of(config, width, mlp, sequential)
    if settings:
        (tag / "configs").mkdir()
        (tag / "configs" / "model.yml").write_text(yaml.safe_dump(settings))
    for rank in range(width):
        layers = layers_of(weights, config, layout=layout, mlp=mlp, width=width, rank=rank)
        for layer, tensors in (extra or {}).items():
            layers[layer] |= {key: value.clone() for key, value in tensors.items()}
        state = state_of(config, width, step)
        if sequential:
            state["module"] = {f"sequential.{at}.{k}": v for at, ts in layers.items() for k, v in ts.items()}
        else:
            for at, tensors in layers.items():
                torch.save(tensors, tag / f"layer_{at:02d}-model_{rank:02d}-model_states.pt")
        torch.save(state, tag / f"mp_rank_{rank:02d}_model_states.pt")
        # Nobody may open these: their bytes are no checkpoint at all.
        (tag / f"bf16_zero_pp_rank_0_mp_rank_{rank:02d}_optim_states.pt").write_bytes(b"\x80\x02optimizer")
    if latest:
        (save / "latest").write_text(tag.name)
    return tag


def read(save: Path, config, *, mlp="new", layout="interleaved") -> tuple[Weights, set[str]]:
    """Weights under Hugging Face's names from a pipeline-layout checkpoint, and the keys nobody asked for."""
    tag = save / (save / "latest").read_text()
    files = {}
    for file in tag.glob("layer_*"):
        found = re.fullmatch(r"layer_(\d\d)-model_(\d\d)-model_states\.pt", file.name)
        files[int(found[1]), int(found[2])] = torch.load(file, weights_only=True)
    width = 1 + max(rank for _, rank in files)
    size, heads, shared = config.head_dim, config.num_attention_heads, config.num_key_value_heads

    def ranks(layer: int, key: str) -> list[Tensor]:
        return [files[layer, rank].pop(key) for rank in range(width)]

    def same(layer: int, key: str) -> Tensor:
        first, *rest = ranks(layer, key)
        assert all(torch.equal(first, other) for other in rest)
        return first

    out = {"model.embed_tokens.weight": torch.cat(ranks(0, "word_embeddings.weight"))}
    parts = ("weight", "bias") if config.use_norm_bias else ("weight",)
    for index in range(config.num_hidden_layers):
        at, block = index + 2, f"model.layers.{index}."
        norms = ["input_layernorm", "post_attention_layernorm"][: 1 if config.use_parallel_residual else 2]
        out |= {f"{block}{norm}.{part}": same(at, f"{norm}.{part}") for norm in norms for part in parts}
        for part in ("weight", "bias") if config.use_qkv_bias else ("weight",):
            rows = {"q": [], "k": [], "v": []}
            for fused in ranks(at, f"attention.query_key_value.{part}"):
                mine, shared_here, left = heads // width, shared // width, list(fused)
                if layout == "concatenated":
                    counts = [("q", mine * size), ("k", shared_here * size), ("v", shared_here * size)]
                else:
                    share = size * shared // heads
                    counts = [("q", size), ("k", share), ("v", share)] * mine
                for which, count in counts:
                    rows[which] += left[:count]
                    left = left[count:]
                assert not left
            out |= {f"{block}self_attn.{w}_proj.{part}": torch.stack(rows[w]) for w in "qkv"}
        out[f"{block}self_attn.o_proj.weight"] = torch.cat(ranks(at, "attention.dense.weight"), 1)
        if mlp == "new":
            fused = ranks(at, "mlp.linear1.weight")
            half = len(fused[0]) // 2
            up, gate = torch.cat([f[:half] for f in fused]), torch.cat([f[half:] for f in fused])
            down = torch.cat(ranks(at, "mlp.linear2.weight"), 1)
        else:
            gate, up = torch.cat(ranks(at, "mlp.w1.weight")), torch.cat(ranks(at, "mlp.w3.weight"))
            down = torch.cat(ranks(at, "mlp.w2.weight"), 1)
        names = zip(("gate", "up", "down"), (gate, up, down), strict=True)
        out |= {f"{block}mlp.{name}_proj.weight": value for name, value in names}
    last = config.num_hidden_layers
    out |= {f"model.norm.{part}": same(last + 3, f"norm.{part}") for part in parts}
    out["lm_head.weight"] = torch.cat(ranks(last + 4, "final_linear.weight"))
    return out, {key for left in files.values() for key in left}
