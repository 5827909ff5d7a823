"""What `stablelm checkpoint` does: lists a run's checkpoints, checks them to the last byte, averages them.

An average is the mean of each weight, one tensor of each checkpoint in memory at a time, summed in float64
and stored in float32. It is a checkpoint without optimizer state: it opens, exports and initialises a run
like any other, and says which checkpoints it is made of. Checked before anything is written: same
architecture, same tokenizer, every byte that is read. `moving_average` makes such a checkpoint of the average
that a run with `ema.decay` keeps beside its weights."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stablelm.config import InputError, ModelConfig
from stablelm.config.model import from_huggingface
from stablelm.interchange.huggingface import read_config
from stablelm.interchange.native import (
    EMA,
    FOLDER,
    best_of,
    check_weights,
    checkpoint_before,
    finished_checkpoints,
    is_checkpoint,
)
from stablelm.interchange.open import locate
from stablelm.interchange.peft import check_adapter, is_adapter
from stablelm.interchange.weights import StoredTensor, build_model, read_headers, read_tensor
from stablelm.model import StableLM
from stablelm.storage import (
    MANIFEST,
    atomic_directory,
    read_json,
    read_manifest,
    refuse_existing,
    require_space,
    sha256_file,
    write_json,
    write_manifest,
)  # fmt: skip

MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Saved:
    """One line of the list."""

    name: str
    step: int
    bytes: int
    processes: int
    """How many wrote it."""
    written: datetime
    bits_per_byte: dict[str, float]
    """Of the newest evaluation, by source."""
    note: str = ""
    """latest, best, permanent, or why it is none."""


def list_checkpoints(run: Path) -> list[Saved]:
    """Every checkpoint of a run, oldest first, and last what is there but is none; reads no tensor."""
    folder = run / FOLDER
    if not folder.is_dir():
        raise InputError(f"{run}: holds no {FOLDER}/; give the directory of a run, its `out`.")
    finished, latest = finished_checkpoints(run), folder / "latest"
    newest = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
    best = (best_of(finished[-1]) or {}).get("step") if finished else None
    rows = [_saved(path, newest, best) for path in finished]
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path not in finished:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            when = datetime.fromtimestamp(path.stat().st_mtime)
            rows.append(Saved(path.name, -1, size, 0, when, {}, "not a finished checkpoint"))
    return rows


def _saved(path: Path, newest: str, best: int | None) -> Saved:
    manifest, state = read_json(path / MANIFEST), read_json(path / "state.json")
    try:
        files = manifest["files"]
        size = sum(file["bytes"] for file in files.values())
        writers = {name.split("-")[1] for name in files if name.startswith("model/shard-")}
        permanent = state["config"]["checkpoint"].get("permanent_every")
        last = {record["source"]: float(record["bits_per_byte"]) for record in state["evaluations"]}
        notes = ["latest"] if path.name == newest else []
        notes += ["best"] if state["step"] == best else []
        notes += ["permanent"] if permanent and state["step"] % permanent == 0 else []
        when = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime)
        return Saved(path.name, int(state["step"]), size, len(writers) or 1, when, last, ", ".join(notes))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(
            f"{path}: its manifest.json or state.json is damaged ({error!r}). "
            f"stablelm checkpoint verify {path} names what is."
        ) from None


def verify(path: Path) -> Iterator[str]:
    """Reads every byte of a checkpoint, or of all of a run's; yields a line for each that is whole.

    Raises `InputError` for the damaged: the file, the tensor, and the newest one that is whole."""
    chosen = [path] if is_checkpoint(path) else finished_checkpoints(path)
    if not chosen:
        raise InputError(
            f"{path}: no finished checkpoint. Give a run's directory, or one of its {FOLDER}/step-N."
        )
    whole: list[Path] = []
    broken: list[InputError] = []
    for checkpoint in chosen:
        try:
            yield f"{checkpoint}: whole: {_verify(checkpoint)}"
            whole.append(checkpoint)
        except InputError as error:
            broken.append(error)
    if broken:
        before = checkpoint_before(chosen[0])
        advice = f" The one before is {before}, not checked yet." if before else ""
        if whole:
            advice = f" The newest that is whole is {whole[-1]}."
        raise InputError("\nerror: ".join(str(error) for error in broken) + advice)


def _verify(path: Path) -> str:
    manifest = read_manifest(path)
    config = from_huggingface(read_config(path), str(path / "config.json"))
    if is_adapter(path):
        weights = check_adapter(path, config)
    else:
        weights = _headers(path, manifest, "model")
        build_model(config, weights, path, None, "meta", StableLM)
    parts = {"model": weights}
    if any(name.startswith("optimizer/") for name in manifest["files"]):
        parts["optimizer"] = _headers(path, manifest, "optimizer")
        wanted = {f"{moment}.{name}": t.shape for name, t in weights.items() for moment in MOMENTS}
        held = {name: stored.shape for name, stored in parts["optimizer"].items()}
        if wrong := sorted(
            name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name)
        ):
            raise InputError(
                f"{path / 'optimizer'}: tensor {wrong[0]!r} is not as the model's weights want it."
            )
    if any(name.startswith(f"{EMA}/") for name in manifest["files"]):
        parts[EMA] = _headers(path, manifest, EMA)
        build_model(config, parts[EMA], path, None, "meta", StableLM)
    for name, stored in ((n, s) for tensors in parts.values() for n, s in tensors.items()):
        if not bool(torch.isfinite(read_tensor(name, stored)).all()):
            raise InputError(
                f"{', '.join(map(str, stored.files))}: tensor {name!r} holds values that are not finite."
            )
    size = sum(file["bytes"] for file in manifest["files"].values())
    tensors = sum(map(len, parts.values()))
    return f"{len(manifest['files'])} files, {size:,} bytes, {tensors:,} tensors, all finite"


def _headers(path: Path, manifest: dict[str, Any], folder: str) -> dict[str, StoredTensor]:
    return read_headers(
        path / name
        for name in manifest["files"]
        if name.startswith(f"{folder}/") and name.endswith(".safetensors")
    )


def average(out: Path, paths: Sequence[Path]) -> Iterator[str]:
    """Writes `out`, the mean of the checkpoints' weights; yields lines for the console.

    A path is a checkpoint or a run, which means what it opens as. `InputError` when they do not belong
    together."""
    refuse_existing(out)
    chosen = [locate(path) for path in paths]
    for path, found in zip(paths, chosen, strict=True):
        if not is_checkpoint(found):
            raise InputError(f"{path}: not a checkpoint; only those of `stablelm train` can be averaged.")
        if is_adapter(found):
            raise InputError(
                f"{path}: holds an adapter, and the mean of B and of A is not that of B A. "
                "Merge adapters first."
            )
    resolved = [path.resolve() for path in chosen]
    if len(set(resolved)) < len(resolved) or len(chosen) < 2:
        raise InputError(f"{', '.join(map(str, chosen))}: give two or more different checkpoints to average.")
    manifests = [check_weights(path) for path in chosen]
    configs = [from_huggingface(read_config(path), str(path / "config.json")) for path in chosen]
    for path, config, manifest in zip(chosen, configs, manifests, strict=True):
        _same(chosen[0], path, configs[0], config)
        tokenizers = [found["files"].get("tokenizer.json") for found in (manifests[0], manifest)]
        if tokenizers[0] != tokenizers[1]:
            raise InputError(
                f"{path}: has another tokenizer.json than {chosen[0]}; their ids differ in meaning."
            )
    tensors = [_headers(path, manifest, "model") for path, manifest in zip(chosen, manifests, strict=True)]
    for path, config, held in zip(chosen, configs, tensors, strict=True):
        build_model(config, held, path, None, "meta", StableLM)
    states = [read_json(path / "state.json") for path in chosen]
    abouts = [read_json(path / "about.json") if (path / "about.json").is_file() else {} for path in chosen]
    require_space(out, 4 * configs[0].num_parameters * 51 // 50, "the average")
    newest = max(range(len(chosen)), key=lambda i: states[i]["step"])
    made_of = [
        {"path": str(path), "step": state["step"], "manifest_sha256": sha256_file(path / MANIFEST)}
        for path, state in zip(chosen, states, strict=True)
    ]
    ancestors = {str(a): a for about in abouts for a in about.get("ancestors", [])}
    about = {**abouts[newest], "evaluations": [], "ancestors": list(ancestors.values()), "averaged": made_of}
    with atomic_directory(out) as aside:
        (aside / "model").mkdir()
        _write_means(aside / "model", tensors)
        _write_rest(aside, chosen[newest], states[newest], about, {"averaged": made_of})
    steps = ", ".join(f"{state['step']:,}" for state in states)
    yield (
        f"{out}: the mean of {len(chosen)} checkpoints (steps {steps}), "
        f"{configs[0].num_parameters:,} parameters"
    )


def moving_average(out: Path, path: Path) -> Iterator[str]:
    """Writes `out`, the moving average of the weights that a checkpoint keeps; yields a line for the console.

    `path` is a checkpoint or a run, which means what it opens as. `InputError` when it keeps none."""
    refuse_existing(out)
    found = locate(path)
    if not is_checkpoint(found):
        raise InputError(f"{path}: not a checkpoint; only those of `stablelm train` keep a moving average.")
    manifest = read_manifest(found, hashes=lambda name: not name.startswith(("model/", "optimizer/")))
    state, config = read_json(found / "state.json"), from_huggingface(read_config(found), str(found))
    names = [name for name in manifest["files"] if name.startswith(f"{EMA}/")]
    if not names or EMA not in state:
        raise InputError(
            f"{found}: keeps no moving average of the weights; ema.decay in the run's configuration, such as "
            "0.999, has one kept from then on."
        )
    build_model(config, _headers(found, manifest, EMA), found, None, "meta", StableLM)
    require_space(out, sum(manifest["files"][name]["bytes"] for name in names), "the moving average")
    moving = {**state[EMA], "path": str(found), "step": state["step"],
              "manifest_sha256": sha256_file(found / MANIFEST)}  # fmt: skip
    about = read_json(found / "about.json") if (found / "about.json").is_file() else {}
    with atomic_directory(out) as aside:
        (aside / "model").mkdir()
        for name in names:
            shutil.copyfile(found / name, aside / "model" / Path(name).name)
        _write_rest(aside, found, state, {**about, "evaluations": [], EMA: moving}, {EMA: moving})
    yield (
        f"{out}: the moving average of the weights at step {state['step']:,} ({moving['updates']:,} updates, "
        f"decay {moving['decay']:g}), {config.num_parameters:,} parameters"
    )


def _write_rest(
    aside: Path, source: Path, state: dict[str, Any], about: dict[str, Any], origin: dict[str, Any]
) -> None:
    """All but the weights of a checkpoint that is made of others; `origin` says of which."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            (aside / name).write_bytes((source / name).read_bytes())
    numbers = {key: value for key, value in state.items() if key != EMA}
    write_json(aside / "state.json", {**numbers, "evaluations": []})
    write_json(aside / "about.json", about)
    write_manifest(aside, {"format": "stablelm-checkpoint", "version": 1, "step": state["step"], **origin})


def _same(first: Path, path: Path, expected: ModelConfig, config: ModelConfig) -> None:
    for name in type(config).model_fields:
        values = getattr(expected, name), getattr(config, name)
        if values[0] != values[1]:
            raise InputError(
                f"{path}: has {name} {values[1]}, {first} has {values[0]}; only checkpoints of one "
                "architecture can be averaged."
            )


def _write_means(folder: Path, tensors: Sequence[dict[str, StoredTensor]]) -> None:
    group: dict[str, torch.Tensor] = {}
    held, number = 0, 1
    names = list(tensors[0])
    for name in names:
        total = read_tensor(name, tensors[0][name]).double()
        for other in tensors[1:]:
            total += read_tensor(name, other[name])
        group[name] = (total / len(tensors)).float()
        held += group[name].nbytes
        if held >= _FILE_BYTES or name == names[-1]:
            save_file(group, folder / f"model-{number:05}.safetensors", {"format": "pt"})
            group, held, number = {}, 0, number + 1
