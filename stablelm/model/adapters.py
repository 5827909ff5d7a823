"""Low-rank adapters: LoRA (Hu et al., 2021), rsLoRA (Kalajdzievski, 2023), DoRA (Liu et al., 2024).

An adapter stands on linear layers and leaves them where they are: a layer that has one gets a class of the
same kind that adds B A x to what it computes, so its weight keeps its name, its place and its other uses, and
packed weights stay packed. Nothing of the base model is trained. A layer may carry several adapters by name;
one of them is active in the whole model, or none, which is the base model to the bit.

DoRA's row lengths ‖W + s B A‖ are computed from ‖W‖, A Wᵀ and A Aᵀ: as much as one more product with r rows,
where the sum itself would be a dense copy of W at every step. As in PEFT no gradient flows through them.

Adapters compute in the dtype of the activations, as all layers do (`linear.py`). Rejected: wrapping each
layer in a module of its own (renames every weight), merging before each forward pass (a dense copy, and
nothing to switch off)."""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stablelm.config import InputError
from stablelm.config.adapter import ALL_LINEAR, AdapterConfig, pattern_of
from stablelm.model.bfloat16_products import linear
from stablelm.storage import keyed_uint64

DEFAULT = "default"
"""The name of an adapter that is the only one."""
HEAD = "lm_head"
"""The one layer that all-linear leaves out."""


class BaseLayer(Protocol):
    """What an adapter stands on: a map x [..., in] → x Wᵀ [..., out] (+ bias)."""

    in_features: int
    out_features: int
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        ...

    def row_norms(self) -> Tensor:
        """L2 norm of each row of W, float32 [out] (float64 for float64 weights)."""
        ...


class LowRank(nn.Module):
    """What one adapter adds to one layer."""

    def __init__(
        self, config: AdapterConfig, rank: int, alpha: float, layer: BaseLayer, device: torch.device
    ) -> None:
        """Left uninitialised. `config` is the whole adapter's, `rank` and `alpha` this layer's."""
        super().__init__()
        self.config, self.scale = config, config.scale(rank, alpha)
        rows, columns = layer.out_features, layer.in_features
        self.lora_A = nn.Parameter(torch.empty(rank, columns, device=device))
        self.lora_B = nn.Parameter(torch.empty(rows, rank, device=device))
        self.lora_magnitude_vector = (
            nn.Parameter(torch.empty(rows, device=device)) if config.decomposed else None
        )
        self._norms: Tensor | None = None  # ‖W‖ by row, which does not change while W is frozen
        self.drop: Callable[[Tensor], Tensor] | None = None  # what A does not see; set while training alone

    def forward(self, x: Tensor, y: Tensor, layer: BaseLayer, base: Callable[[Tensor], Tensor]) -> Tensor:
        """x [..., in] and y = base(x) [..., out] → the adapted layer's output, in the dtype of y."""
        seen = x if self.drop is None else self.drop(x)
        low = linear(linear(seen, self.lora_A) * self.scale, self.lora_B)  # [..., out]
        if self.lora_magnitude_vector is None:
            return y + low
        bias = layer.bias
        if bias is not None:
            y = y - bias.to(y.dtype)
        stretch = self.lora_magnitude_vector / self._lengths(layer, base, x.dtype)  # [out]
        out = (stretch * (y + low)).to(x.dtype)
        return out if bias is None else out + bias.to(out.dtype)

    @torch.no_grad()
    def _lengths(self, layer: BaseLayer, base: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """‖W + s B A‖ of each row [out], in the precision of A; `base` is x → x Wᵀ (+ bias), asked in
        `dtype`."""
        a, b = self.lora_A, self.lora_B
        if self._norms is None or (self._norms.device, self._norms.dtype) != (a.device, a.dtype):
            self._norms = layer.row_norms().to(a)
        crossed = base(a.to(dtype)).to(a)  # [r, out]
        if layer.bias is not None:
            crossed = crossed - layer.bias.to(a)
        square = self._norms.square() + 2 * self.scale * (crossed.T * b).sum(1)
        square = square + self.scale**2 * ((b @ (a @ a.T)) * b).sum(1)
        return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()

    def forget_norms(self) -> None:
        """After the layer's weight has changed."""
        self._norms = None


class _Adapted:
    """A layer that carries adapters; stands before the layer's own class."""

    adapters: nn.ModuleDict
    active: str | None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        base = cast(Callable[[Tensor], Tensor], super().forward)  # type: ignore[misc]
        y = base(x)
        if self.active is None or self.active not in self.adapters:
            return y
        return cast(LowRank, self.adapters[self.active])(x, y, self, base)  # type: ignore[no-any-return]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)  # type: ignore[misc]
        for part in self.adapters.values():
            cast(LowRank, part).forget_norms()


class _AdaptedHead(_Adapted):
    """The output projection, with losses: `chunk` tokens' logits at a time, computed again in the backward
    pass. (The head's own loss makes a gradient of its whole weight, which nobody wants here.)"""

    chunk: int
    smoothing: float = 0.0
    told: Tensor | None

    def forward(self, hidden: Tensor, labels: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """As `model.head.Head` is asked."""
        if self.active is None or self.active not in self.adapters:
            plain: Tensor = super(_Adapted, self).forward(hidden, labels, places)  # type: ignore[misc]
            return plain
        if labels is None:
            return super().forward(hidden)
        flat = hidden.flatten(0, -2)
        if places is not None:
            return torch.cat(self._parts(self._told, flat[places], labels), dim=1)
        losses = torch.cat(self._parts(self._losses, flat, labels.flatten()))
        if self.told is not None:
            self.told[0] = losses.detach()
        return losses.sum()

    def _parts(
        self, told: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, labels: Tensor
    ) -> list[Tensor]:
        pieces = zip(torch.split(hidden, self.chunk), torch.split(labels, self.chunk), strict=True)
        if not torch.is_grad_enabled():
            return [told(h, y) for h, y in pieces]
        return [checkpoint(told, h, y, use_reentrant=False, preserve_rng_state=False) for h, y in pieces]

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = super().forward(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            self._logits(hidden),
            labels.clamp(min=-1),
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.smoothing,
        )

    def _told(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """As `model.predictions`, [3, N]."""
        nats = self._logits(hidden).log_softmax(dim=-1)
        best, place = nats.detach().max(dim=-1)
        return torch.stack([nats.gather(1, ids.unsqueeze(1)).squeeze(1), best, (place == ids).to(nats.dtype)])


@functools.cache
def _adapted(kind: Any) -> Any:
    """The class of a layer of this kind that carries adapters; heads are those that have a `chunk`."""
    mixin = _AdaptedHead if hasattr(kind, "chunk") else _Adapted
    return type(f"Adapted{kind.__name__}", (mixin, kind), {})


def own_class(layer: nn.Module) -> type[nn.Module]:
    """A layer's class, without the adapters that it carries."""
    kind = type(layer)
    return cast(type[nn.Module], kind.__bases__[1]) if isinstance(layer, _Adapted) else kind


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Layers that an adapter can stand on, by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "row_norms")}


def matched(config: AdapterConfig, names: Iterable[str]) -> list[str]:
    """Those of the layers' `names` that the adapter's `targets` mean, by PEFT's rules; `InputError` for a
    target that is none of them."""
    names, targets = list(names), config.targets
    ends = sorted({name.rpartition(".")[2] for name in names})
    has = f"This model has {', '.join(ends)} (model.layers.0.self_attn.q_proj in full)."
    if targets == ALL_LINEAR:
        return [name for name in names if name != HEAD]
    if isinstance(targets, str):
        pattern = pattern_of(targets, "adapter targets")
        found = [name for name in names if pattern.fullmatch(name)]
        if not found:
            raise InputError(f"adapter targets {targets!r}: match the whole name of no matrix. {has}")
        return found
    wanted: set[str] = set()
    for target in targets:
        meant = {name for name in names if name == target or name.endswith(f".{target}")}
        if not meant:
            raise InputError(f"adapter targets: {target!r} is no matrix of this model. {has}")
        wanted |= meant
    return [name for name in names if name in wanted]


def sizes(config: AdapterConfig, name: str) -> tuple[int, float]:
    """Rank and alpha of a layer; patterns match as PEFT's do, the end of a name, the first that does."""
    found: list[float] = []
    for patterns, default in ((config.rank_pattern, config.rank), (config.alpha_pattern, config.alpha)):
        hit = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)
        found.append(default if hit is None else patterns[hit])
    return int(found[0]), float(found[1])


def attach(
    model: nn.Module, config: AdapterConfig, name: str = DEFAULT, *, seed: int | None = 1234
) -> list[str]:
    """Puts a fresh adapter on the layers that `config` targets, makes it the active one and freezes all else;
    returns the layers' names.

    A starts uniform within ±1/√in, drawn from (seed, layer), B at 0, lengths at W's: the model computes what
    it did. With `seed` None all are left to be filled. `InputError` for targets that match nothing, a rank
    larger than a side, a name that is taken."""
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"adapter name {name!r}: use letters, digits, - and _.")
    if name in names_of(model):
        raise InputError(f"adapter {name!r}: the model carries one of this name already.")
    layers = linear_layers(model)
    chosen = matched(config, layers)
    for place in chosen:
        layer, (rank, _) = layers[place], sizes(config, place)
        side = min(layer.in_features, layer.out_features)
        if seed is not None and rank > side:
            raise InputError(
                f"adapter rank {rank}: {place} is [{layer.out_features}, {layer.in_features}], so at most "
                f"{side} is a rank. Lower adapter.rank, or give this matrix its own in adapter.rank_pattern."
            )
    model.requires_grad_(False)
    for place in chosen:
        layer = layers[place]
        if not isinstance(layer, _Adapted):
            kind: Any = type(layer)
            layer.__class__ = _adapted(kind)
            layer.adapters, layer.active = nn.ModuleDict(), None
        made = LowRank(config, *sizes(config, place), layer, layer.weight.device)
        layer.adapters[name] = made
        if seed is not None and layer.weight.device.type != "meta":
            for part, parameter in made.named_parameters():
                full = f"{place}.adapters.{name}.{part}"
                parameter.data.copy_(initial_value(full, parameter.shape, seed, layer.row_norms))
    use(model, name)
    return chosen


def initial_value(
    name: str, shape: torch.Size, seed: int, row_norms: Callable[[], Tensor] | None = None
) -> Tensor:
    """The first value of an adapter's parameter, by its name and shape alone, as on every mesh; lengths are
    the base layer's `row_norms`."""
    if name.endswith("lora_magnitude_vector"):
        assert row_norms is not None
        return row_norms()
    if name.endswith("lora_B"):
        return torch.zeros(shape)
    place = name.rpartition(".adapters.")[0]
    generator = torch.Generator().manual_seed(keyed_uint64("adapter", seed, place) >> 1)
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def carriers(model: nn.Module) -> dict[str, Any]:
    """Layers that carry an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _Adapted)}


def names_of(model: nn.Module) -> list[str]:
    """The adapters that the model carries, in the order they came."""
    return list(dict.fromkeys(name for layer in carriers(model).values() for name in layer.adapters))


def parts_of(model: nn.Module, name: str) -> dict[str, LowRank]:
    """An adapter's parts by layer; `InputError` when the model carries none of this name."""
    found = {
        place: layer.adapters[name] for place, layer in carriers(model).items() if name in layer.adapters
    }
    if not found:
        known = ", ".join(names_of(model)) or "none"
        raise InputError(f"adapter {name!r}: the model carries no such adapter, but {known}.")
    return found


def active(model: nn.Module) -> str | None:
    """The adapter in use; None for the base model."""
    return next((layer.active for layer in carriers(model).values()), None)


def use(model: nn.Module, name: str | None) -> None:
    """Makes one of the adapters the active one, and the only one that is trained; None switches all off."""
    if name is not None:
        parts_of(model, name)
    for layer in carriers(model).values():
        layer.active = name
        for other, part in layer.adapters.items():
            part.requires_grad_(other == name)


@contextlib.contextmanager
def using(model: nn.Module, name: str | None) -> Iterator[None]:
    """The model with another of its adapters, or with none (the base model), for the length of a block; what
    is trained stays the same."""
    layers, before = carriers(model), active(model)
    if name is not None:
        parts_of(model, name)
    try:
        for layer in layers.values():
            layer.active = name
        yield
    finally:
        for layer in layers.values():
            layer.active = before


def switched_off(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The base model, for the length of a block."""
    return using(model, None)


def detach(model: nn.Module, name: str) -> None:
    """Takes an adapter away; a layer without any is what it was before."""
    parts_of(model, name)
    for layer in carriers(model).values():
        if name in layer.adapters:
            del layer.adapters[name]
        if layer.active == name:
            layer.active = None
        if not layer.adapters:
            layer.__class__ = own_class(layer)
            del layer.adapters, layer.active


@torch.no_grad()
def delta(part: LowRank, layer: Any) -> Tensor:
    """The dense weight of an adapted layer, in the adapter's precision [out, in]: W + s B A, its rows at
    their learnt lengths."""
    a, b = part.lora_A, part.lora_B
    whole: Tensor = layer.weight.to(a) + part.scale * (b @ a)
    if part.lora_magnitude_vector is not None:
        lengths = torch.linalg.vector_norm(whole, dim=1).clamp(min=torch.finfo(whole.dtype).tiny)
        whole = whole * (part.lora_magnitude_vector / lengths).unsqueeze(1)
    return whole


@torch.no_grad()
def merge(model: nn.Module, name: str) -> None:
    """Writes an adapter into the weights it stands on, in their own precision, and takes it away.

    `InputError` for packed weights, which cannot hold it, and where other adapters were made for the weights
    as they are."""
    others = [other for other in names_of(model) if other != name]
    if others:
        raise InputError(f"adapter {others[0]!r} was made for the unmerged model; take it away first.")
    layers = carriers(model)
    for place, part in parts_of(model, name).items():
        if not layers[place].weight.is_floating_point():
            raise InputError(
                f"{place}: packed weights cannot hold an adapter. Merge into the original, then quantise."
            )
        weight = layers[place].weight
        merged = delta(part, layers[place]).to(weight.dtype)
        layers[place].weight = nn.Parameter(
            merged, requires_grad=weight.requires_grad
        )  # never in a mapped file
    detach(model, name)


def require_none(model: nn.Module, what: str) -> None:
    """Refuses to do `what` to a model with adapters, where they would be lost in silence."""
    if names := names_of(model):
        raise InputError(
            f"{what}: the model carries an adapter ({names[0]}), which would be lost. Merge it first "
            "(stablelm adapter merge), or take it away."
        )
