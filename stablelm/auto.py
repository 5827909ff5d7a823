"""The names of the model card's snippets: the same calls as with `transformers`, for a local path or a Hub
id, no code of a checkpoint ever run.

`AutoModelForCausalLM.from_pretrained` returns a `StableLM` with `generate` and `save_pretrained` added; the
state dict is the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.inference import Decoding, Sampling, generate_ids
from stablelm.inference.quantization import Recipe, is_packed
from stablelm.inference.quantization import quantize as round_model
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.adapters import attach_all, checked, named
from stablelm.interchange.hub import resolve
from stablelm.interchange.open import locate
from stablelm.model import StableLM
from stablelm.model.adapters import names_of, use
from stablelm.planning import resolve_device
from stablelm.tokenizer import Tokenizer

_DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


class PretrainedStableLM(StableLM):
    """A StableLM that was opened from a path."""

    tokenizer: Tokenizer | None = None
    """The tokenizer found beside the weights: it says which ids exist, and is saved with them."""

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float | None = 1.0,
        top_k: int | None = 50,
        top_p: float | None = 1.0,
        min_p: float | None = 0.0,
        repetition_penalty: float | None = 1.0,
        seed: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
    ) -> Tensor:
        """input_ids int64 [B, S] → int64 [B, S + N], the prompt included, as in `transformers`.

        Greedy unless `do_sample`; None switches a setting off; `top_k` is 50 by default because it is there.
        Row i draws with seed + i. Rows that ended are filled with `pad_token_id`. `num_beams` above 1 is a
        beam search, with `early_stopping=False`; it does not go with `do_sample`."""
        if num_beams > 1 and do_sample:
            raise InputError("num_beams above 1 searches and do_sample draws; leave one of them away.")
        sampling = Sampling(
            temperature=1.0 if temperature is None else temperature,
            top_k=0 if top_k is None else top_k,
            top_p=1.0 if top_p is None else top_p,
            min_p=0.0 if min_p is None else min_p,
            repetition_penalty=1.0 if repetition_penalty is None else repetition_penalty,
            seed=seed,
        )
        words = self.tokenizer
        return generate_ids(
            self,
            input_ids,
            attention_mask,
            max_new_tokens=max_new_tokens,
            sampling=sampling if do_sample else Sampling(0.0, repetition_penalty=sampling.repetition_penalty),
            eos_ids=[eos_token_id] if isinstance(eos_token_id, int) else eos_token_id,
            pad_id=words.pad_id if pad_token_id is None and words is not None else pad_token_id,
            real_ids=None if words is None else words.size,
            way=Decoding(beams=num_beams, length_penalty=length_penalty if num_beams > 1 else 1.0),
        )

    def cuda(self, device: int | torch.device | None = None) -> "PretrainedStableLM":
        """Moves the model to a GPU; without one, `InputError` instead of an assertion inside PyTorch."""
        if not torch.cuda.is_available():
            raise InputError(
                "model.cuda(): this machine has no usable CUDA GPU. Without that line it runs here."
            )
        return super().cuda(device)

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that the model carries."""
        return names_of(self)

    def use_adapter(self, name: str | None) -> None:
        """Switches to one of them; None is the base model, to the bit. Nothing is read or written."""
        use(self, name)

    def save_pretrained(self, directory: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
        """Writes a new directory in the Hugging Face layout, with the tokenizer that came with the model."""
        save_pretrained(self, self.tokenizer, directory, max_shard_bytes=max_shard_bytes)


class AutoModelForCausalLM:
    """`AutoModelForCausalLM.from_pretrained(path or Hub id)`."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: str | int | torch.device | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        use_flash_attention_2: bool = False,
        trust_remote_code: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
    ) -> PretrainedStableLM:
        """The model at a path (a Hugging Face directory, a run, a checkpoint, a demo's output) or of a Hub
        id.

        `dtype` (or `torch_dtype`, its older name) is a torch dtype, its name, or "auto", the default: the
        precision of the files. `device_map` is a device, or "auto" for CUDA where there is one.
        `attn_implementation` is "sdpa", "eager" or "flash_attention_2" (`use_flash_attention_2=True` is its
        older spelling); `model.attention` says what was chosen and why. `revision`, `token`,
        `local_files_only` and `cache_dir` are for Hub ids. `trust_remote_code` is accepted and without
        effect: no code from a checkpoint is run."""
        if dtype is not None and torch_dtype is not None and _precision(dtype) != _precision(torch_dtype):
            raise InputError(f"dtype={dtype!r} and torch_dtype={torch_dtype!r} disagree; give one of them.")
        if isinstance(device_map, Mapping):
            if list(device_map) != [""]:
                raise InputError(
                    "device_map spreads the model over devices, which is not supported; name one device."
                )
            device_map = device_map[""]
        device = resolve_device(
            f"cuda:{device_map}" if isinstance(device_map, int) else str(device_map or "cpu")
        )
        if use_flash_attention_2 and attn_implementation not in (None, "flash_attention_2"):
            raise InputError(
                f"use_flash_attention_2=True and attn_implementation={attn_implementation!r} disagree."
            )
        precision = _precision(dtype if dtype is not None else torch_dtype)
        folder = resolve(
            path, revision=revision, token=token, local_files_only=local_files_only, cache_dir=cache_dir
        )
        model, tokenizer = open_path(folder, precision, device, PretrainedStableLM)
        assert isinstance(model, PretrainedStableLM)
        model.tokenizer = tokenizer
        model.use_attention("flash_attention_2" if use_flash_attention_2 else attn_implementation)
        return model


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(path)`."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        trust_remote_code: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
    ) -> Tokenizer:
        """The tokenizer of a model's path or Hub id, or of a directory or file that is only a tokenizer."""
        hub = {
            "revision": revision,
            "token": token,
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
        }
        folder = resolve(path, patterns=["*.json", "*.txt"], **hub)  # type: ignore[arg-type]
        if folder.is_file() or (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(folder)
        return Tokenizer.from_file(locate(folder))


def load(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    quantize: int | None = None,
    group: int = 64,
    adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path] = (),
) -> tuple[PretrainedStableLM, Tokenizer]:
    """Model and tokenizer of a path, ready for `generate`; `InputError` when one of them is not there.

    `quantize` 4 or 8 rounds the weights to that many bits, with a scale every `group` columns, while loading,
    on the CPU; `stablelm quantize` does it once and for all. `adapters` are directories in PEFT's format, or
    runs that trained one, by name or each with its directory's name; the first is in use, and
    `model.use_adapter` switches."""
    recipe = None if quantize is None else Recipe.of(quantize, group)
    place = resolve_device(str(device))
    first = place if recipe is None else "cpu"  # where weights are rounded
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=first)
    if isinstance(adapters, str | Path):
        adapters = [adapters]
    chosen = adapters if isinstance(adapters, Mapping) else named([str(one) for one in adapters])
    found = checked(model, resolve(path), chosen)
    if recipe is not None:
        if is_packed(model):
            raise InputError(f"{path}: quantised already; leave quantize= away, or load the original.")
        round_model(model, recipe)
        model.to(place)
        model.use_attention()
    if found:
        model.tokenizer = attach_all(model, found) or model.tokenizer
    if model.tokenizer is None:
        return model, AutoTokenizer.from_pretrained(path)  # which says what is missing
    return model, model.tokenizer


def _precision(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return None if isinstance(dtype, str) else dtype
    if found := _DTYPES.get(dtype.removeprefix("torch.")):
        return found
    raise InputError(f"dtype {dtype!r} does not exist; write auto, {', '.join(_DTYPES)}.")
