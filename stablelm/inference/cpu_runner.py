"""The runner of the CPU kernels: a step is one call (`kernels/cpu/decoder.py`), a prompt is PyTorch's.

It takes models in bfloat16, 8 and 4 bits; `runner_for` gives the plain `ModelRunner` for others and where
Numba is missing, and `why_not` says why. Prompts of a batch are read one by one, without padding, and rows of
a step are computed apart: a text is the one that it would be alone, to the bit. Prompts of up to 16 tokens go
through the kernels, too."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stablelm.config import InputError
from stablelm.inference.cpu_cache import CpuCache, bytes_per_token, check_kind, rotation
from stablelm.inference.quantization import FEW_ROWS, QuantizedHead, QuantizedLinear
from stablelm.inference.runner import CHUNK, ModelRunner, kv_bytes, require_memory
from stablelm.kernels.cpu.packing import Packed
from stablelm.model import StableLM
from stablelm.model.adapters import active, own_class
from stablelm.model.head import Head
from stablelm.model.linear import Linear

if TYPE_CHECKING:
    from stablelm.kernels.cpu.decoder import Decoder


_KNOWN = (QuantizedLinear, QuantizedHead)


def why_not(model: StableLM, device: torch.device | None = None) -> str | None:
    """Why the CPU kernels do not run this model where it is, or would not on `device`; None when they do."""
    if (adapter := active(model)) is not None:
        return f"the adapter {adapter!r} is in use"
    if own_class(model.lm_head) not in (Head, QuantizedHead):
        return f"lm_head is a {type(model.lm_head).__name__}"
    dtype = model.compute_dtype or model.dtype
    if (place := device or model.device).type != "cpu":
        return f"the model is on {place}"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"they compute in float32 or bfloat16, the model in {dtype}"
    if model.config.hidden_size % 16:
        return f"the hidden size, {model.config.hidden_size:,}, is not a multiple of 16"
    if model.attention.name == "eager":
        return "the eager attention was asked for"
    try:
        from stablelm.kernels.cpu.products import takes
    except ImportError as error:
        return f"Numba cannot be used here ({error})"
    for name, layer in model.named_modules():
        if own_class(layer) in (Linear, Head):
            matrix: Any = layer.weight
            if dtype != torch.bfloat16 or not takes(matrix):
                shape = f"{str(matrix.dtype).removeprefix('torch.')} {list(matrix.shape)}"
                return f"{name} is neither packed nor bfloat16 with columns in 32s: {shape}"
        elif isinstance(layer, (nn.Linear, QuantizedLinear)) and own_class(layer) not in _KNOWN:
            return f"{name} is a {type(layer).__name__}"
    return None


def default_cache(model: StableLM) -> str:
    """The kind of cache that the CPU kernels use unless told: 8 bits for a 4-bit model, whose rounding is far
    coarser, else the precision of the arithmetic."""
    first = model.model.layers[0].mlp.down_proj  # type: ignore[union-attr]
    if isinstance(first, QuantizedLinear) and first.bits == 4:
        return "int8"
    return "bf16" if (model.compute_dtype or model.dtype) == torch.bfloat16 else "fp32"


def decoding(model: StableLM, device: torch.device | None = None) -> str:
    """What computes a decoding step of the model on `device`, for a reader."""
    if reason := why_not(model, device):
        return f"PyTorch operators, one by one: {reason}"
    from stablelm.kernels.cpu.vectors import INSTRUCTIONS

    cache = default_cache(model)
    return f"Numba, {INSTRUCTIONS}: a step of up to {FEW_ROWS} tokens in one call, cache in {cache}"


def token_bytes(model: StableLM, cache: str | None = None) -> int:
    """Bytes of keys and values a token, in the cache that `runner_for` would use."""
    if why_not(model) is None:
        return bytes_per_token(model.config, cache or default_cache(model))
    return kv_bytes(model)


def runner_for(model: StableLM, cache: str | None = None) -> "ModelRunner | CpuRunner":
    """The fastest runner that takes the model. `cache`: "int8", "bf16", "fp32" or None, the default.

    `InputError` for a kind of cache that only the kernels know where they do not run."""
    check_kind(cache)
    reason = why_not(model)
    if reason is None:
        return CpuRunner(model, cache)
    own = {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(model.compute_dtype or model.dtype)
    if cache not in (None, own):
        raise InputError(
            f"cache = {cache!r} is read by the CPU kernels alone, which do not run this model: {reason}. "
            "Leave it out."
        )
    return ModelRunner(model)


class CpuRunner:
    """A `Runner` on the kernels."""

    def __init__(self, model: StableLM, cache: str | None = None, chunk: int = CHUNK) -> None:
        assert chunk >= 1
        self.model, self.chunk = model, chunk
        self.kind = cache or default_cache(model)
        self._decoder = build_decoder(model)
        _tell_of_compilation()
        self._cache: CpuCache | None = None
        self._gaps = torch.zeros(0, dtype=torch.int64)

    def prefill(self, ids: Tensor, mask: Tensor | None, capacity: int) -> Tensor:
        """See `Runner`."""
        config, batch = self.model.config, ids.shape[0]
        require_memory(self.model, batch, capacity, bytes_per_token(config, self.kind))
        self._cache = CpuCache(config, batch, capacity, self.kind, self.model.attention.function)
        self._gaps = torch.zeros(batch, dtype=torch.int64)
        return self.extend(ids, mask)

    def extend(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """More tokens of each row, ids and mask [B, S] as in `prefill` → logits of the last [B, V]."""
        gaps = torch.zeros(len(ids), dtype=torch.int64) if mask is None else (~mask).sum(1)
        self._gaps = self._gaps + gaps
        return torch.cat([self._prompt(row, ids[row, int(gap) :]) for row, gap in enumerate(gaps)])

    def state(self, length: int) -> dict[str, Tensor]:
        """What was computed of the first `length` tokens of row 0, by name; views."""
        assert self._cache is not None
        return self._cache.tensors(length)

    def layout(self, length: int) -> dict[str, Tensor]:
        """`state` on the meta device: names, shapes, precisions."""
        with torch.device("meta"):
            empty = CpuCache(self.model.config, 1, length, self.kind, self.model.attention.function)
        return empty.tensors(length)

    def resume(self, state: Mapping[str, Tensor], length: int, capacity: int) -> None:
        """Starts one row from the `state` of another runner of this model and kind of cache."""
        config = self.model.config
        require_memory(self.model, 1, capacity, bytes_per_token(config, self.kind))
        self._cache = CpuCache(config, 1, capacity, self.kind, self.model.attention.function)
        self._gaps = torch.zeros(1, dtype=torch.int64)
        for name, place in self._cache.tensors(length).items():
            place.copy_(state[name])
        self._cache.lengths[:] = length

    def step(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        return self._run(ids[:, None], True)

    def read(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        pieces = [self._run(piece, False) for piece in torch.split(ids, FEW_ROWS, dim=1)]
        return torch.cat([piece.view(len(ids), -1, piece.shape[-1]) for piece in pieces], dim=1)

    def trim(self, length: int) -> None:
        """See `Runner`."""
        assert self._cache is not None
        self._cache.lengths = (length - self._gaps).clamp(min=0)

    def reorder(self, rows: Sequence[int]) -> None:
        """See `Runner`."""
        assert self._cache is not None
        self._cache.reorder(rows)
        self._gaps = self._gaps[list(rows)]

    def _prompt(self, row: int, ids: Tensor) -> Tensor:
        """One prompt [S] → logits of its last token [1, V]."""
        assert self._cache is not None
        if len(ids) <= FEW_ROWS:
            return self._run(ids[None], True, row)
        text = self._cache.text(row)
        for piece in torch.split(ids, self.chunk):
            hidden = self.model.hidden_states(piece[None], cache=text)
        logits: Tensor = self.model.lm_head(hidden[:, -1])
        return logits.float()

    def _run(self, ids: Tensor, last: bool, first: int = 0) -> Tensor:
        """ids [B, S ≤ 16] of the texts from `first` on → logits [B or B · S, V]."""
        cache, model = self._cache, self.model
        assert cache is not None
        count = ids.shape[1]
        found = []
        for start in range(0, len(ids), FEW_ROWS // count):
            some = ids[start : start + FEW_ROWS // count]
            texts = slice(first + start, first + start + len(some))
            starts = cache.lengths[texts].clone()
            assert int(starts.max()) + count <= cache.capacity
            positions = (starts[:, None] + torch.arange(count)).flatten()
            cos, sin = rotation(model.config, positions, model.compute_dtype or model.dtype)
            logits = self._decoder.run(
                model.model.embed_tokens.weight[some.flatten()], count, starts, first + start, cos, sin,
                cache.store.numpy(), cache.scales.numpy(), cache.element, last,
            )  # fmt: skip
            cache.lengths[texts] += count
            found.append(logits)
        return found[0] if len(found) == 1 else torch.cat(found)


@cache
def _tell_of_compilation() -> None:
    """Once in a process, where its first token will wait."""
    from stablelm.kernels.cpu.decoder import is_compiled

    if not is_compiled():
        logging.getLogger(__name__).warning(
            "compiling the CPU kernels for this processor; this takes half a minute, once"
        )


def build_decoder(model: StableLM) -> "Decoder":
    """The kernels' view of a model's weights, which stay where they are."""
    from stablelm.kernels.cpu.decoder import BlockWeights, Decoder

    def norm(layer: Any) -> tuple[Tensor, Tensor | None]:
        return layer.weight, layer.bias

    blocks = []
    for layer in model.model.layers:
        block: Any = layer
        attention, mlp = block.self_attn, block.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        head_norms: list[Tensor | None] = [None, None]
        if attention.normalizes:
            pair = attention.q_layernorm, attention.k_layernorm
            head_norms = [torch.stack([norm.weight for norm in heads.norms]) for heads in pair]
        norms = [norm(block.input_layernorm)]
        if not block.parallel:
            norms.append(norm(block.post_attention_layernorm))
        blocks.append(
            BlockWeights(
                norms, [_matrix(p) for p in projections], [p.bias for p in projections], head_norms,
                _matrix(attention.o_proj), [_matrix(mlp.gate_proj), _matrix(mlp.up_proj)],
                _matrix(mlp.down_proj),
            )
        )  # fmt: skip
    config = model.config
    return Decoder(
        blocks, norm(model.model.norm), _matrix(model.lm_head), config.head_dim, config.layer_norm_eps
    )


def _matrix(layer: Any) -> Packed | Tensor:
    return layer.packed if isinstance(layer, QuantizedLinear) else layer.weight.detach()
