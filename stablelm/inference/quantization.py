"""Weights in 4 or 8 bits: what is rounded, how, and the layer that computes with them.

Every projection of the blocks is rounded group by group along its columns (symmetric, `kernels/cpu`). The
head of a 4-bit model has 8 bits (its errors reach the logits directly; it costs 4 % of the bytes of a token),
the embedding stays as it is (one row of it is read a token), and so do norms and biases. With batches of ids
the blocks are calibrated in order, each on what the already rounded ones before it put out: GPTQ (Frantar et
al., 2022), with the scales searched by the errors that matter, each column weighed by the mean square of its
inputs. Rejected: zero points (one more product a group), 3 bits and less."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stablelm.config import InputError
from stablelm.inference.packed_products import Frozen, exact_product
from stablelm.kernels.cpu.packing import GROUPS, Packed, dense, pack, shapes
from stablelm.model import StableLM
from stablelm.model.adapters import require_none
from stablelm.model.head import chunked_loss
from stablelm.model.linear import Linear
from stablelm.model.predictions import predictions
from stablelm.model.rotary import Rotary

BITS = (4, 8)
FEW_ROWS = 16
"""Rows up to which the matrix-vector kernels are used; above, prefill."""


@dataclass(frozen=True)
class Recipe:
    """How a model was, or is to be, rounded; kept in config.json under `quantization_config`."""

    bits: int
    group: int = 64
    head_bits: int = 8
    calibrated: bool = False
    quant_method: str = "stablelm"
    version: int = 1

    @classmethod
    def of(cls, bits: int, group: int = 64) -> "Recipe":
        """Checked."""
        for name, value, known in (("bits", bits, BITS), ("group", group, GROUPS)):
            if isinstance(value, bool) or value not in known:
                raise InputError(
                    f"{name} = {value!r} is not supported; choose {' or '.join(map(str, known))}."
                )
        return cls(bits, group)

    @classmethod
    def read(cls, values: Any, source: str) -> "Recipe":
        """From a config.json."""
        method = values.get("quant_method") if isinstance(values, dict) else values
        if method != "stablelm":
            raise InputError(
                f"{source}: quantization_config of {method!r} cannot be read. Use the unquantised weights "
                "and `stablelm quantize`."
            )
        if values.get("version") != 1:
            raise InputError(
                f"{source}: quantization_config.version = {values.get('version')!r} is not 1: written by "
                "another version of stablelm. Quantise the original again."
            )
        unknown = sorted(values.keys() - asdict(cls(4)).keys())
        if unknown:
            raise InputError(f"{source}: quantization_config.{unknown[0]} is not known. Quantise again.")
        cls.of(values.get("bits"), values.get("group"))
        if values.get("head_bits") not in BITS:
            raise InputError(f"{source}: quantization_config.head_bits = {values.get('head_bits')!r}.")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self)


class QuantizedLinear(nn.Module):
    """y = x Wᵀ (+ b) with W packed in tiles of 4 or 8 bits; stands where a `Linear` stood."""

    __call__: Callable[..., Tensor]
    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    exact: bool = False
    """Compute with the numbers of x as they are, as training does also where it only measures."""

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bits, self.group = packed.bits, packed.group
        self.rows, self.columns = packed.rows, packed.columns
        self.out_features, self.in_features = packed.rows, packed.columns  # as a `Linear` says it
        self.register_buffer("weight", packed.weight)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("bias", bias)

    @property
    def packed(self) -> Packed:
        """The matrix as the kernels take it."""
        return Packed(self.bits, self.group, self.rows, self.columns, self.weight, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out], dtype kept."""
        flat = x.reshape(-1, self.columns)
        exact = self._exactly(x)
        out = exact_product(self.packed, flat) if exact else rounded(self.packed, flat).to(x.dtype)
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        return out.view(*x.shape[:-1], self.rows)

    def _exactly(self, x: Tensor) -> bool:
        """Whether the product is the one that has a gradient and runs anywhere."""
        return self.exact or x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled())

    def row_norms(self) -> Tensor:
        """L2 norm of each row of W, float32 [out]; makes it dense for a moment."""
        norms: Tensor = torch.linalg.vector_norm(dense(self.packed), dim=1)
        return norms

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # A packed matrix has no other precision: `.to("cuda", torch.float32)` moves it and changes nothing.
        if self.weight.device.type != "meta":
            for child in self.children():  # an adapter is moved and rounded as anything else
                child._apply(fn)  # type: ignore[no-untyped-call]
            place = fn(self.weight[:0]).device
            self.weight, self.scale = self.weight.to(place), self.scale.to(place)
            self.bias = None if self.bias is None else self.bias.to(place)
        return self


class QuantizedHead(QuantizedLinear):
    """The output projection, as `model.head.Head` is asked; losses take `chunk` tokens at a time."""

    chunk: int = 512
    smoothing: float = 0.0
    told: Tensor | None = None

    def forward(self, hidden: Tensor, labels: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """hidden [..., h] → logits [..., V]; labels [...] already shifted, negative = ignored; with places,
        how each label is predicted [3, N]."""
        if labels is None:
            return super().forward(hidden)
        matrix = Frozen(self.packed) if self._exactly(hidden) else _Rounded(self.packed)
        if places is not None:
            return predictions(hidden.flatten(0, -2)[places], matrix, labels)
        return chunked_loss(hidden, matrix, labels, self.chunk, self.smoothing, told=self.told)


class _Rounded(Frozen):
    """The same matrix by the fast products, for a loss without a gradient."""

    def times(self, x: Tensor, out: Tensor) -> None:
        """Writes x [B, K] Ŵᵀ into out [B, N], x rounded."""
        out.copy_(rounded(self.packed, x))


def rounded(packed: Packed, x: Tensor) -> Tensor:
    """x [B, K] → x Wᵀ [B, N] by the kernels, which round x to 8 bits; float32 or the dtype of x."""
    return few(packed, x) if len(x) <= FEW_ROWS else many(packed, x)


def few(packed: Packed, x: Tensor) -> Tensor:
    """x [B, K] → x Wᵀ [B, N] in float32, as fast as memory gives W."""
    try:
        from stablelm.kernels.cpu.products import product
    except ImportError:  # no Numba: `kernels_in_use` says so
        return x.float() @ dense(packed).T
    return product(packed, x)


def many(packed: Packed, x: Tensor) -> Tensor:
    """x [B, K] → x Wᵀ [B, N] for many rows, by products of 8-bit numbers. In the dtype of x or float32."""
    try:
        from stablelm.kernels.cpu.prefill import product_of_many
    except ImportError:
        return x.float() @ dense(packed).T
    return product_of_many(packed, x)


def kernels_in_use(device: torch.device) -> str:
    """Which kernels compute with packed weights on a device, and why."""
    if device.type != "cpu":
        made = "Triton makes" if importlib.util.find_spec("triton") else "PyTorch's operators make"
        return f"PyTorch's dense products; {made} a piece of a matrix dense for each"
    try:
        from stablelm.kernels.cpu.prefill import BY_GROUPS
        from stablelm.kernels.cpu.vectors import INSTRUCTIONS
    except ImportError as error:
        return f"PyTorch: weights are made dense for each product, slow; Numba cannot be used here ({error})"
    others = " and ".join(f"{bits}-bit" for bits in BITS if bits not in BY_GROUPS)
    return f"Numba, {INSTRUCTIONS}" + (
        f"; above {FEW_ROWS} rows of {others} weights torch._int_mm" * bool(others)
    )


def is_packed(model: StableLM) -> bool:
    """Whether the model's weights are quantised."""
    return isinstance(model.lm_head, QuantizedLinear)


def compute_exactly(model: StableLM) -> None:
    """Has the packed layers compute as in training, also where nothing is learnt."""
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            layer.exact = True


def projections(model: StableLM) -> list[tuple[str, Linear]]:
    """What is rounded, by name: every projection of the blocks, then the head."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear)]
    return sorted(found, key=lambda pair: pair[0] == "lm_head")


def prepare(model: StableLM, recipe: Recipe) -> None:
    """Puts empty quantised layers (on the meta device) where a model on the meta device has `Linear`s."""
    for name, layer in projections(model):
        bits = recipe.head_bits if name == "lm_head" else recipe.bits
        rows, columns = layer.weight.shape
        sizes = shapes(rows, columns, bits, recipe.group)
        weight = torch.empty(sizes[0], dtype=torch.uint8, device="meta")
        scale = torch.empty(sizes[1], dtype=torch.bfloat16, device="meta")
        _put(model, name, Packed(bits, recipe.group, rows, columns, weight, scale), layer.bias)


@torch.no_grad()
def quantize(
    model: StableLM,
    recipe: Recipe,
    calibration: Sequence[Tensor] = (),
    progress: Callable[[str], object] = lambda name: None,
    weights: Mapping[str, Tensor] | None = None,
) -> Recipe:
    """Rounds the model in place and returns the recipe as it was done; arithmetic stays in the dtype it had.

    `calibration`: batches of ids [B, S] of real text, some thousand tokens in all. `progress` is called with
    the name of every matrix that is done. `weights` gives the tensors instead of the model, one at a time,
    where what is read of a memory-mapped model would stay. `InputError` for weights that are not finite."""
    if is_packed(model):
        raise InputError("the model is quantised already; start from the original.")
    require_none(model, "quantise")
    if model.device.type != "cpu":
        raise InputError("quantise on the CPU: the packed weights are made for it.")
    for ids in calibration:
        if (
            ids.dim() != 2
            or not ids.numel()
            or not 0 <= int(ids.min()) <= int(ids.max()) < model.config.vocab_size
        ):
            raise InputError(f"calibration wants ids [batch, tokens] below {model.config.vocab_size:,}.")
    model.compute_dtype = model.compute_dtype or model.dtype
    hidden = [model.model.embed_tokens(ids).to(model.compute_dtype) for ids in calibration]
    config = model.config
    for index, block in enumerate(model.model.layers):

        def forward(block: nn.Module = block, hidden: list[Tensor] = hidden) -> list[Tensor]:
            rotaries = [
                Rotary(torch.arange(x.shape[1]), config.rotary_dim, config.rope_theta) for x in hidden
            ]
            return [block(x, rotary, None, None) for x, rotary in zip(hidden, rotaries, strict=True)]

        prefix = f"model.layers.{index}."
        layers = [(prefix + name, m) for name, m in block.named_modules() if isinstance(m, Linear)]
        seen = _inputs(layers, forward)
        for name, layer in layers:
            _round(model, name, layer, recipe.bits, recipe.group, seen.get(name), weights)
            progress(name)
        hidden = forward()
    flat = [model.model.norm(x).flatten(0, 1).float() for x in hidden]
    among = sum(x.T @ x for x in flat) / sum(map(len, flat)) if flat else None
    _round(model, "lm_head", model.lm_head, recipe.head_bits, recipe.group, among, weights)
    progress("lm_head")
    return Recipe(recipe.bits, recipe.group, recipe.head_bits, bool(calibration))


def _put(model: StableLM, name: str, packed: Packed, bias: Tensor | None) -> None:
    above, _, last = name.rpartition(".")
    kind = QuantizedHead if name == "lm_head" else QuantizedLinear
    setattr(model.get_submodule(above), last, kind(packed, None if bias is None else bias.detach()))


def _round(
    model: StableLM, name: str, layer: Linear, bits: int, group: int, among: Any,
    weights: Mapping[str, Tensor] | None,
) -> None:  # fmt: skip
    """Replaces a projection; `among` [K, K] is the mean of x xᵀ over its inputs, or None."""
    from stablelm.kernels.cpu.rounding import round_groups

    weight = (layer.weight.detach() if weights is None else weights[f"{name}.weight"]).float()
    if not bool(weight.isfinite().all()):
        raise InputError(f"tensor {name}.weight holds NaN or infinity; a broken model cannot be quantised.")
    levels, scales = round_groups(weight, bits, group, None if among is None else among.diagonal())
    if among is not None:
        levels = feed_back(weight, scales, bits, group, among)
    _put(model, name, pack(levels, scales, bits, group), layer.bias)


def feed_back(weight: Tensor, scales: Tensor, bits: int, group: int, among: Tensor) -> Tensor:
    """GPTQ: levels [N, K] chosen column by column, each column's error put right by the columns to come.

    With H = E[x xᵀ] (1 % of its mean diagonal added) and U the upper Cholesky factor of H⁻¹, an error e of
    column j is spread as e · U[j, j+1:] / U[j, j]."""
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    columns, weight = weight.shape[1], weight.clone()
    damped = among.double() + torch.eye(columns) * (0.01 * float(among.diagonal().mean()) + 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    spread = torch.linalg.cholesky(inverse, upper=True).float()
    levels = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, columns, 128):
        part, row = weight[:, start : start + 128], spread[start : start + 128]
        errors = torch.empty_like(part)
        for j in range(part.shape[1]):
            scale, at = scales[:, (start + j) // group], start + j
            level = (part[:, j] / scale).round().clamp(low, high)
            levels[:, at] = level.to(torch.int8)
            errors[:, j] = (part[:, j] - level * scale) / spread[at, at]
            part[:, j + 1 :] -= errors[:, j, None] * row[j, at + 1 : start + part.shape[1]]
        weight[:, start + 128 :] -= errors @ row[:, start + 128 :]
    return levels


def _inputs(layers: Sequence[tuple[str, Linear]], run: Callable[[], object]) -> dict[str, Tensor]:
    """Mean of x xᵀ [K, K] over all inputs x that each layer is given during `run`."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach().flatten(0, -2).float()
            sums[name] = sums.get(name, 0) + x.T @ x
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}
