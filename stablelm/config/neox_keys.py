"""The keys of a GPT-NeoX YAML: for each, one verdict, and why.

`mapped` sets a key of ours; `used` takes part in such a value, or must have the one value that is true here
(another is refused); `ignored` changes nothing that is learnt, the reason says why; `refused` would change
it, the reason says what to do. Names are written with `_`, `-` means the same; a dot leads into a section.
The defaults are GPT-NeoX's (`megatron/neox_arguments`), not ours: a key left out means what it meant there.
Keys of Stability's fork (`mlp_type`, `cooldown`, `qk_norm`, …) are known from its published files alone. Keys
of GPT-NeoX that are not here are refused as unknown: what they would change is not looked into."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Verdict = Literal["used", "mapped", "ignored", "refused"]
Allowed = Callable[[Any], bool]


class Key(NamedTuple):
    """What becomes of a key. A value that is not `allowed` is refused; `remedy` says what to do then."""

    verdict: Verdict
    why: str
    ours: str = ""
    """Our key that is set; of a refused one, the key that settles it where the user sets that himself."""
    kind: str = ""
    """What its value must be: WHOLE, NUMBER, SWITCH, TEXT, LIST (below); empty takes anything."""
    default: Any = None
    """What a key that is not given means; None: nothing."""
    allowed: Allowed | None = None
    remedy: str = ""


def one_of(*allowed: Any) -> Allowed:
    """True for one of these values; 1 and true are two."""
    return lambda value: any(value == known and type(value) is type(known) for known in allowed)


def full_attention(value: Any) -> bool:
    """[[["flash"], 32]], [["global", 32]], ["flash", "flash", …]: full causal attention everywhere."""
    if isinstance(value, list):
        return all(map(full_attention, value))
    return value is None or isinstance(value, int) or value in ("flash", "global")


def _zero(value: Any) -> bool:
    return value in (0, None, False)


# What another value would make another network: default, values allowed, what this network has.
NETWORK: dict[str, tuple[Any, Allowed, str]] = {
    "norm": ("layernorm", one_of("layernorm"), "layernorm"),
    "pos_emb": ("rotary", one_of("rotary"), "rotary"),
    "rotary_interleaved": (False, one_of(False), "false"),
    "rotary_scaling_factor": (1, lambda value: value == 1, "1"),
    "activation": ("gelu", one_of("silu", "swish", "swiglu"), "silu (or swiglu) in a gated MLP"),
    "mlp_type": ("gated", one_of("gated", "llama"), "gated"),
    "output_layer_parallelism": ("column", one_of("column"), "column"),
    "attention_config": (None, full_attention, "flash or global in every layer"),
    "use_qk_layernorm": (
        False,
        one_of(False, None),
        "no such norm; GPT-NeoX's spans all heads of a rank, StableLM 2 12B's each head alone",
    ),
    "use_bias_in_qk_norm": (False, one_of(False, None), "false"),
    "sliding_window_width": (None, one_of(None), "full attention"),
    "apply_query_key_layer_scaling": (False, one_of(False, None), "false"),
    "use_mup": (False, one_of(False, None), "false"),
    "moe_num_experts": (1, one_of(0, 1, None), "1"),
    "num_unique_layers": (None, one_of(None), "no shared layers"),
    "train_impl": ("normal", lambda value: value != "rm", "a language model's head"),
}


def _mapped(ours: str, kind: str, default: Any = None, why: str = "", **more: Any) -> Key:
    return Key("mapped", why, ours, kind, default, **more)


def _only(why: str, *values: Any, default: Any = None, remedy: str = "remove it", ours: str = "") -> Key:
    """Used where it has one of `values`, refused otherwise."""
    return Key("used", why, ours, "", default, one_of(*values), remedy)


def _all(verdict: Verdict, why: str, names: str, **more: Any) -> dict[str, Key]:
    return {name: Key(verdict, why, **more) for name in names.split()}


WHOLE, NUMBER, SWITCH, TEXT, LIST = "a whole number", "a number", "true or false", "a text", "a list"
_SPEED = "a choice of kernel; the one for the device is taken here, with the same result"
_NO_FP16 = "write precision: bfloat16 and bf16: {enabled: true}, or --set precision=bf16 (or fp32)"
_CALLER = "how GPT-NeoX is started; torchrun or srun start a run here"
_WANDB = "every step is in metrics.jsonl; logging.tensorboard and logging.wandb show it elsewhere"
_TUNING = "DeepSpeed's tuning of communication; fully_shard has its own"
_HELD_OUT = "held-out loss is measured on the documents that `stablelm data prepare` held out"
_WEIGHT = "training starts from its weights"

KEYS: dict[str, Key] = {
    # the network
    "num_layers": _mapped("model.num_hidden_layers", WHOLE),
    "hidden_size": _mapped("model.hidden_size", WHOLE),
    "num_attention_heads": _mapped("model.num_attention_heads", WHOLE),
    "attention_head_type": _only(
        "num_kv_heads says how many heads share keys and values",
        "multihead", "groupedquery", "multiquery", remedy="write multihead, groupedquery or multiquery",
    ),
    "num_kv_heads": _mapped("model.num_key_value_heads", WHOLE),
    "max_position_embeddings": _mapped("model.max_position_embeddings", WHOLE),
    "rotary_pct": _mapped("model.partial_rotary_factor", NUMBER, 1.0),
    "rotary_emb_base": _mapped("model.rope_theta", NUMBER, 10_000),
    "layernorm_epsilon": _mapped("model.layer_norm_eps", NUMBER, 1e-5),
    "mlp_multiple_of": Key("used", "rounds model.intermediate_size up", kind=WHOLE, default=1),
    "intermediate_size": _mapped(
        "model.intermediate_size", WHOLE, why="the width with mlp_type; three times that with swiglu alone"
    ),
    "expansion_factor": Key("used", "times hidden_size, instead of intermediate_size", kind=NUMBER),
    "no_weight_tying": _only(
        "the head has weights of its own", True, default=False, remedy="write true; no tied head here"
    ),
    "gpt_j_residual": _mapped("model.use_parallel_residual", SWITCH, False),
    "gpt_j_tied": Key("used", "the one LayerNorm of a parallel block", kind=SWITCH, default=False),
    "use_bias_in_norms": _mapped("model.use_norm_bias", SWITCH, True),
    "use_bias_in_attn_linear": _only(
        "no biases in attention", False, default=True, ours="model.use_qkv_bias",
        remedy="true has one on the output projection too, which is not here; write false, or "
        "--set model.use_qkv_bias=true for query, key and value alone",
    ),
    "use_bias_in_mlp": _only("no biases in the MLP", False, default=True, remedy="write false"),
    "qk_norm": _mapped("model.qk_layernorm", SWITCH, False, "a norm for each head, as StableLM 2 12B has it"),
    "init_method": _only(
        "normal with init_method_std", "normal", default="normal", ours="init",
        remedy="write normal, or start from weights with --set init=DIR",
    ),
    "init_method_std": _mapped("model.initializer_range", NUMBER, 0.02),
    "output_layer_init_method": _only(
        "residual outputs are drawn with std/√(2·layers)", "scaled_normal", default="scaled_normal",
        ours="init", remedy="write scaled_normal, or start from weights with --set init=DIR",
    ),
    "make_vocab_size_divisible_by": Key(
        "used", "× model_parallel_size: model.vocab_size is a multiple of it", kind=WHOLE, default=128
    ),
    # the tokenizer
    "tokenizer_type": Key("used", "with vocab_file it tells the ids, if that file is not here", kind=TEXT),
    "vocab_file": _mapped("model.vocab_size", TEXT, why="its ids, padded; also data.neox.tokenizer"),
    **_all("ignored", "vocab_file is a whole tokenizer here", "merge_file"),
    # optimizer and schedule
    "optimizer.type": _only(
        "DeepSpeed's Adam decouples the weight decay: AdamW", "Adam", "adam", default="adam",
        remedy="write Adam; there is no other optimizer here",
    ),
    "optimizer.params.lr": _mapped("optimizer.lr", NUMBER),
    "optimizer.params.betas": _mapped("optimizer.betas", LIST, [0.9, 0.999]),
    "optimizer.params.eps": _mapped("optimizer.eps", NUMBER, 1e-8),
    "weight_decay": _mapped("optimizer.weight_decay", NUMBER, 0.1, "of matrices, not of norms and biases"),
    "gradient_clipping": _mapped("optimizer.clip", NUMBER, 1.0),
    "min_lr": _mapped("schedule.floor", NUMBER, 0.0, "÷ lr"),
    "warmup": _mapped("schedule.warmup", NUMBER, 0.01),
    "lr_decay_style": _mapped(
        "schedule.shape", TEXT, "linear", allowed=one_of("cosine", "constant"),
        remedy="write cosine or constant, or choose a schedule of ours with --set schedule.shape=… (linear "
        "and exponential of GPT-NeoX count the warm-up in and end above their floor)",
    ),
    "lr_decay_iters": Key("used", "the steps of the schedule; they must be train_iters", kind=WHOLE),
    "cooldown": _only("no cooldown", 0, 0.0, remedy="write 0 and say the cooldown in our keys"),
    "lr": Key("refused", "GPT-NeoX takes it from its optimizer; write optimizer: {params: {lr: …}}"),
    "lr_decay_fraction": Key("refused", "the schedule here is that of all steps; remove it"),
    "train_epochs": Key("refused", "write train-iters, or say the epochs of each source in data.epochs"),
    "z_loss": _only("cross-entropy alone", 0, 0.0, remedy="write 0"),
    "use_checkpoint_lr_scheduler": _only("the schedule is always that of the configuration", False),
    "override_lr_scheduler": Key("ignored", "the schedule is always that of the configuration"),
    "train_iters": _mapped("steps", WHOLE),
    # the batch
    "seq_length": _mapped("batch.sequence_length", WHOLE),
    "train_batch_size": _mapped("batch.sequences", WHOLE),
    "train_micro_batch_size_per_gpu": _mapped("batch.micro_sequences", WHOLE, 1),
    "gradient_accumulation_steps": Key(
        "used", "part of batch.sequences; here it follows from the processes at hand", kind=WHOLE, default=1
    ),
    "reference_world": _mapped(
        "batch.sequences", WHOLE, why="ours: the GPUs of the original run, × micro batch × accumulation"
    ),
    "stablelm": Key("used", "ours: keys in our spelling that GPT-NeoX has no name for; they win"),
    # parallelism and memory
    "pipe_parallel_size": _only(
        "no pipeline", 0, 1, default=0, remedy="write 1: tensor and data parallelism do without a pipeline"
    ),
    "model_parallel_size": _mapped("parallel.tensor", WHOLE, 1),
    "sequence_parallel": _mapped("parallel.sequence_parallel", SWITCH),
    "zero_optimization.stage": _mapped("parallel.zero", WHOLE, 0),
    "zero_optimization.cpu_offload": _only(
        "everything stays on the device", False, remedy="write false; a higher ZeRO stage saves memory"
    ),
    **_all(
        "ignored", _TUNING,
        "zero_optimization.allgather_partitions zero_optimization.allgather_bucket_size "
        "zero_optimization.overlap_comm zero_optimization.reduce_scatter "
        "zero_optimization.reduce_bucket_size zero_optimization.contiguous_gradients "
        "zero_allow_untested_optimizer",
    ),
    "checkpoint_activations": _mapped("recompute", SWITCH, False, "full where true"),
    "checkpoint_num_layers": Key("ignored", "each block is recomputed by itself", kind=WHOLE),
    "partition_activations": Key("ignored", "sequence parallelism shards what is kept"),
    "synchronize_each_layer": Key("ignored", "a synchronisation for debugging; it changes no number"),
    **_all(
        "ignored", "recompute alone decides here",
        "checkpoint_in_cpu contiguous_checkpointing activation_checkpointing",
    ),
    # precision
    "precision": _mapped(
        "precision", TEXT, allowed=one_of("bfloat16", "fp32"), remedy=_NO_FP16, why="bfloat16 is bf16"
    ),
    "bf16.enabled": Key("used", "chooses bf16 where precision is not given", kind=SWITCH, default=False),
    **{
        f"fp16.{name}": Key(
            "used", "no fp16", "precision", default=False, allowed=one_of(False),
            remedy=f"fp16 with a loss scale is not here: {_NO_FP16}",
        )
        for name in ("enabled", "fp16")
    },
    **_all(
        "ignored", "part of fp16, which is not here",
        "fp16.loss_scale fp16.loss_scale_window fp16.initial_scale_power fp16.hysteresis fp16.min_loss_scale "
        "fp16.type fp16.auto_cast",
    ),
    "full_precision_lm_cross_entropy": _only("the cross-entropy is in float32", True),
    "fp16_lm_cross_entropy": _only("the cross-entropy is in float32", False),
    **_all("ignored", "gradients are accumulated in float32", "data_types"),
    "fp32_allreduce": Key("ignored", "gradients are always reduced in float32"),
    "attention_softmax_in_fp32": Key("ignored", "the kernels' softmax is in float32"),
    "hidden_dropout": Key("used", "no dropout", default=0.0, allowed=_zero, remedy="write 0"),
    "attention_dropout": Key("used", "no dropout", default=0.0, allowed=_zero, remedy="write 0"),
    **_all(
        "ignored", _SPEED,
        "use_flash_cross_entropy bias_gelu_fusion bias_dropout_fusion rope_fusion layernorm_fusion "
        "scaled_upper_triang_masked_softmax_fusion scaled_masked_softmax_fusion use_flashattn_swiglu",
    ),
    # data
    "train_data_paths": _mapped("data.neox.paths", LIST),
    "train_data_weights": _mapped("data.neox.weights", LIST),
    "data_path": _mapped("data.neox.paths", TEXT, why="with split"),
    "split": _mapped("data.neox.split", TEXT, why="with data_path alone"),
    "weight_by_num_documents": _only("weights are those given", False, remedy="give the weights it makes"),
    "data_impl": _only("token files are mapped into memory", "mmap", "infer", remedy="write mmap"),
    "reset_attention_mask": _mapped("data.document_boundaries", SWITCH, why="with reset_position_ids"),
    "reset_position_ids": Key("used", "with reset_attention_mask", kind=SWITCH),
    "pack_impl": _only("documents are packed", "packed", remedy="write packed"),
    "dataset_impl": _only("trained on the next token", "gpt2", remedy="write gpt2, or use finetuning"),
    "eod_mask_loss": _only("the separator's loss counts", False),
    **_all("ignored", _HELD_OUT, "valid_data_paths valid_data_weights test_data_paths test_data_weights"),
    **_all("ignored", "data is read on threads of their own", "num_workers mmap_warmup use_shared_fs"),
    # saving, evaluating, logging
    "save": _mapped("out", TEXT),
    "load": Key("ignored", "--resume continues the run in `out`", "init", TEXT),
    "finetune": Key("used", f"with `load`: {_WEIGHT}, a new run begins", kind=SWITCH),
    "iteration": Key("ignored", "GPT-NeoX overwrites it when it loads, or starts at 0"),
    "checkpoint_factor": _mapped("checkpoint.every", WHOLE),
    "keep_last_n_checkpoints": _mapped("checkpoint.keep", WHOLE),
    "s3_sync_interval": _mapped("checkpoint.permanent_every", WHOLE, why="checkpoints that stay for ever"),
    "extra_save_iters": Key("ignored", "checkpoint.every decides; step 0 follows from the seed"),
    "checkpoint_scale": _only("a checkpoint every so many steps", "linear", remedy="write linear"),
    **_all("ignored", "copy the run's directory to any place", "s3_path s3_chunk_size"),
    "no_checkpoint_arg_validation": Key("ignored", "a checkpoint of another run is always refused"),
    "eval_interval": _mapped("evaluation.every", WHOLE, 1000),
    "eval_iters": _mapped("evaluation.windows", WHOLE, 100, "× batch.sequences, from each source"),
    **_all("ignored", "`stablelm evaluate` runs tasks on a checkpoint", "eval_tasks eval_batch_size"),
    "log_interval": _mapped("logging.every", WHOLE, 100),
    "tensorboard_dir": _mapped("logging.tensorboard", TEXT, why="true where given; they lie in `out`"),
    "seed": _mapped("seed", WHOLE, 1234),
    **_all(
        "ignored", _WANDB,
        "use_wandb wandb_host wandb_team wandb_project wandb_group wandb_name wandb_id wandb_resume log_dir "
        "wandb_run_name steps_per_print wall_clock_breakdown log_grad_norm log_param_norm log_grad_pct_zeros "
        "log_optimizer_states log_gradient_noise_scale use_comet comet_workspace comet_project comet_tags "
        "peak_theoretical_tflops profile memory_profiling",
    ),
    **_all("ignored", "belongs to μP, which is not here", "save_base_shapes base_shapes_file coord_check"),
    **_all(
        "ignored", _CALLER,
        "launcher deepspeed_slurm deepspeed_mpi distributed_backend hostfile num_nodes num_gpus include "
        "exclude master_port master_addr global_num_gpus force_multi no_ssh_check comment account deepspeed "
        "do_train do_valid do_test pipe_partition_method",
    ),
}  # fmt: skip
for _name, (_default, _test, _has) in NETWORK.items():
    KEYS[_name] = Key("used", _has, "", "", _default, _test, "this network has no other")
KEYS["pos_emb"] = KEYS["pos_emb"]._replace(
    default="learned", remedy="write rotary; this network has no other"
)
KEYS["train_impl"] = _only("trained on the next token", "normal", remedy="write normal, or use finetuning")

SECTIONS = {name.rsplit(".", n)[0] for name in KEYS for n in range(1, name.count(".") + 1)}
"""Keys that hold a mapping of others."""
