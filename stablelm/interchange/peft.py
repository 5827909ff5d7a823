"""Adapters as PEFT's files: a directory with adapter_config.json and adapter_model.safetensors.

What the configuration says is honoured or refused by name. Every key of PEFT's that would change the network
and has no part here must be off (null, false or empty), and so must a key that is not known; a file from a
version to come is therefore read as long as it uses nothing new. Which matrices the adapter stands on, and
what shapes its tensors have, is checked from the header alone before anything is allocated. Adapters are
kept in float32, as PEFT keeps them. Only safetensors are read: adapter_model.bin is a pickle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.config.adapter import ALL_LINEAR, AdapterConfig, pattern_of
from stablelm.config.schema import validate
from stablelm.interchange.native import is_checkpoint
from stablelm.interchange.weights import StoredTensor, read_header, read_headers, read_tensor
from stablelm.model import StableLM
from stablelm.model.adapters import DEFAULT, HEAD, attach, linear_layers, matched, parts_of, sizes
from stablelm.storage import atomic_directory, read_json, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")
_READ = (
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "rank_pattern",
    "alpha_pattern", "lora_dropout", "exclude_modules", "layers_to_transform", "layers_pattern", "bias",
    "init_lora_weights",
)  # fmt: skip
_IDLE = (
    "peft_version", "base_model_name_or_path", "auto_mapping", "revision", "inference_mode",
    "megatron_core", "qalora_group_size", "runtime_config", "eva_config", "ensure_weight_tying",
)  # fmt: skip
"""Keys that change nothing in a trained adapter of this network."""
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""`init_lora_weights` that leave the base model's weights alone."""


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter in PEFT's format."""
    return (path / CONFIG).is_file()


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json as a mapping, of an adapter that this network can carry."""
    path = directory / CONFIG
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a mapping of settings is wanted, not a {type(values).__name__}.")
    wanted = {"peft_type": ("LORA",), "task_type": ("CAUSAL_LM", None), "bias": ("none", None)}
    for key, known in wanted.items():
        if values.get(key) not in known:
            raise InputError(f"{path}: {key} {values.get(key)!r} is not supported, only {known[0]}.")
    start = values.get("init_lora_weights", True)
    if start not in _STARTS:
        raise InputError(
            f"{path}: init_lora_weights {start!r} changed the base model's weights, which the adapter was "
            "then made for. Convert it with PEFT (path_initial_model_for_weight_conversion)."
        )
    for key, value in values.items():
        if key not in _READ and key not in _IDLE and value not in (None, False, [], {}, ""):
            raise InputError(
                f"{path}: {key} = {value!r} is not supported. Merge the adapter with PEFT, or train one "
                "without."
            )
    kinds = {
        "exclude_modules": (str, list),
        "layers_to_transform": (int, list),
        "layers_pattern": (str, list),
    }
    for key, allowed in kinds.items():
        if (value := values.get(key)) is not None and not isinstance(value, allowed):
            raise InputError(f"{path}: {key} = {value!r} is not what PEFT writes there.")
    return values


def adapter_config(values: Mapping[str, Any], names: list[str], source: Path) -> AdapterConfig:
    """The adapter that a PEFT configuration describes, on a model with linear layers of these `names`."""
    method = "dora" if values.get("use_dora") else "lora"
    targets = values.get("target_modules")
    if targets is None:
        raise InputError(f"{source}: target_modules is null; it must name the matrices, or be {ALL_LINEAR}.")
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        targets = ALL_LINEAR
    config = validate(
        AdapterConfig,
        {
            "method": f"rs{method}" if values.get("use_rslora") else method,
            "rank": values.get("r", 8),
            "alpha": values.get("lora_alpha", 8),
            "dropout": values.get("lora_dropout") or 0.0,
            "targets": targets,
            "rank_pattern": values.get("rank_pattern") or {},
            "alpha_pattern": values.get("alpha_pattern") or {},
        },
        str(source),
    )
    chosen = matched(config, names)
    narrowed = [name for name in chosen if not _left_out(values, name)]
    if not narrowed:
        raise InputError(
            f"{source}: exclude_modules and layers_to_transform leave none of its target_modules."
        )
    return config if narrowed == chosen else config.model_copy(update={"targets": narrowed})


def _left_out(values: Mapping[str, Any], name: str) -> bool:
    """Whether `exclude_modules` or `layers_to_transform` take a target away, by PEFT's rules."""
    excluded, layers = values.get("exclude_modules") or [], values.get("layers_to_transform")
    if isinstance(excluded, str):
        if pattern_of(excluded, "exclude_modules").fullmatch(name):
            return True
    elif any(name == part or name.endswith(f".{part}") for part in excluded):
        return True
    if layers is None or layers == [] or isinstance(values.get("target_modules"), str):
        return False
    patterns = values.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := pattern_of(rf"(?:^|.*?\.){pattern}\.(\d+)\.", "layers_pattern").match(name):
            return int(found[1]) not in ([layers] if isinstance(layers, int) else layers)
    return True


def load_adapter(model: StableLM, directory: str | Path, name: str = DEFAULT) -> AdapterConfig:
    """Puts the adapter of a PEFT directory, or of a checkpoint of ours, on the model, under `name`, and makes
    it the active one.

    `InputError` names whatever is not supported, missing, or made for another model, before anything is
    allocated."""
    directory = Path(directory)
    if not is_adapter(directory):
        raise InputError(f"{directory}: no adapter: {CONFIG} is not there.")
    layers = linear_layers(model)
    config = adapter_config(read_adapter_config(directory), list(layers), directory / CONFIG)
    stored = stored_parts(directory)
    if (head := stored.pop(f"{HEAD}.base_layer", None)) is not None:
        _same_head(*head, model)
    where = directory / "model" if is_checkpoint(directory) else directory / WEIGHTS
    fitting(
        where, {part: found.shape for part, (_, found) in stored.items()}, expected_shapes(config, layers)
    )
    tensors = {part: read_tensor(key, found) for part, (key, found) in stored.items()}
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{where}: tensor {key!r} holds values that are not finite.")
    attach(model, config, name, seed=None)
    with torch.no_grad():
        for place, part in parts_of(model, name).items():
            for key, parameter in part.named_parameters():
                parameter.copy_(tensors[f"{place}.{key}"])
    return config


def check_adapter(directory: Path, network: ModelConfig) -> dict[str, StoredTensor]:
    """The tensors of an adapter's directory, by their names there; `InputError` unless they are just what it
    wants on a model of this architecture. Reads headers alone."""
    with torch.device("meta"):
        layers = linear_layers(StableLM(network))
    config = adapter_config(read_adapter_config(directory), list(layers), directory / CONFIG)
    stored = stored_parts(directory)
    stored.pop(f"{HEAD}.base_layer", None)
    fitting(
        directory, {part: found.shape for part, (_, found) in stored.items()}, expected_shapes(config, layers)
    )
    return dict(stored.values())


def expected_shapes(config: AdapterConfig, layers: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What an adapter on these layers consists of, by `layer.part`."""
    found: dict[str, tuple[int, ...]] = {}
    for place in matched(config, layers):
        layer, (rank, _) = layers[place], sizes(config, place)
        found[f"{place}.lora_A"] = (rank, layer.in_features)
        found[f"{place}.lora_B"] = (layer.out_features, rank)
        if config.decomposed:
            found[f"{place}.lora_magnitude_vector"] = (layer.out_features,)
    return found


def fitting(file: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses tensors that are not just those wanted, by name and shape."""
    for key in sorted(wanted.keys() | found.keys()):
        if key not in found:
            raise InputError(f"{file}: tensor {key!r} is missing, although {CONFIG} targets that matrix.")
        if key not in wanted:
            raise InputError(f"{file}: tensor {key!r} has no place: {CONFIG} or the model does not have it.")
        if found[key] != wanted[key]:
            raise InputError(
                f"{file}: tensor {key!r} has shape {list(found[key])}, this model and {CONFIG} want "
                f"{list(wanted[key])}: the adapter was made for a model of other sizes."
            )


def stored_parts(directory: Path) -> dict[str, tuple[str, StoredTensor]]:
    """The tensors of an adapter's directory, PEFT's or a checkpoint of ours, with their names there, by
    `layer.part`; `lm_head.base_layer` is PEFT's copy of the base model's head."""
    file = directory / WEIGHTS
    if is_checkpoint(directory):
        headers = read_headers(sorted((directory / "model").glob("*.safetensors")))
    elif file.is_file():
        headers = read_header(file)
    else:
        pickled = (directory / "adapter_model.bin").is_file()
        instead = (
            " adapter_model.bin is a pickle, which can run code: save it anew with PEFT." if pickled else ""
        )
        raise InputError(f"{file}: missing, although {CONFIG} is there.{instead}")
    found: dict[str, tuple[str, StoredTensor]] = {}
    for key, stored in headers.items():
        if key.startswith(_PREFIX):
            name = key.removeprefix(_PREFIX).removesuffix(".weight")
        else:
            name = key.replace(f".adapters.{DEFAULT}.", ".")
        whole = name != key and name.rpartition(".")[2] in _PARTS
        if not whole and name != f"{HEAD}.base_layer":
            raise InputError(f"{stored.file}: tensor {key!r} is none of an adapter's ({', '.join(_PARTS)}).")
        if stored.dtype == torch.uint8:
            raise InputError(
                f"{stored.file}: tensor {key!r} is packed; an adapter's are floating-point numbers."
            )
        found[name] = key, stored
    return found


def _same_head(key: str, stored: StoredTensor, model: StableLM) -> None:
    weight: Tensor = model.lm_head.weight
    if weight.is_floating_point():
        coarse = min(weight.dtype, stored.dtype, key=lambda dtype: dtype.itemsize)
        if stored.shape != tuple(weight.shape) or not torch.equal(
            read_tensor(key, stored).to(coarse), weight.detach().cpu().to(coarse)
        ):
            raise InputError(
                f"{stored.file}: {key!r} is not this model's head: the adapter was made for another model."
            )


def peft_config(config: AdapterConfig, base: str) -> dict[str, Any]:
    """adapter_config.json of an adapter on the model called `base`."""
    whole = [f"{letter}_proj" for letter in "qkvo"] + ["gate_proj", "up_proj", "down_proj"]
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.method.startswith("rs"),
        "use_dora": config.decomposed,
        "target_modules": whole if config.targets == ALL_LINEAR else config.targets,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _peft_name(place: str, part: str) -> str:
    return f"{_PREFIX}{place}.{part}" + (".weight" if part in ("lora_A", "lora_B") else "")


def save_adapter(
    model: StableLM,
    directory: str | Path,
    name: str = DEFAULT,
    *,
    base: str = "",
    files: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> None:
    """Writes an adapter of the model as a directory that PEFT loads; `base` is the model's name or path for
    it, `files` go beside it by name. An existing directory is refused, or replaced as a whole."""
    parts = parts_of(model, name)
    tensors = {
        _peft_name(place, key): parameter.detach().cpu().contiguous()
        for place, part in parts.items()
        for key, parameter in part.named_parameters()
    }
    settings = peft_config(next(iter(parts.values())).config, base)
    _write(Path(directory), settings, tensors, files or {}, replace)


def extract_adapter(
    checkpoint: Path,
    directory: Path,
    names: Sequence[str],
    *,
    more: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> None:
    """Writes the adapter in a checkpoint of ours as a directory that PEFT loads, with the files of these
    `names` that the checkpoint has, and `more` by name; no base model is needed."""
    tensors = {
        _peft_name(*name.rpartition(".")[::2]): read_tensor(key, stored)
        for name, (key, stored) in stored_parts(checkpoint).items()
    }
    files = {name: (checkpoint / name).read_bytes() for name in names if (checkpoint / name).is_file()}
    _write(directory, read_adapter_config(checkpoint), tensors, {**files, **(more or {})}, replace)


def _write(
    directory: Path,
    settings: Mapping[str, Any],
    tensors: dict[str, Tensor],
    files: Mapping[str, bytes],
    replace: bool,
) -> None:
    with atomic_directory(directory, replace=replace) as aside:
        write_json(aside / CONFIG, settings)
        save_file(tensors, aside / WEIGHTS, {"format": "pt"})
        (aside / WEIGHTS).chmod((aside / CONFIG).stat().st_mode)  # safetensors lets only its owner read
        for file, content in files.items():
            (aside / file).write_bytes(content)
