"""How attention is computed, and why: one function that chooses, one table of what can be chosen.

* `sdpa`: PyTorch's `scaled_dot_product_attention`: its FlashAttention-2 kernel on CUDA, or cuDNN's, which it
  takes by itself on an H100 or H200 (1.7 times as fast there); its flash kernel on a CPU.
* `flash_attention_2`: the `flash_attn` package where it is installed and the model is on CUDA in 16 bits;
  anywhere else the name means PyTorch's own flash kernel, through `sdpa`.
* FlashAttention-3, on a GPU of compute capability 9 where its package (`flash_attn_interface`) is installed:
  PyTorch runs it inside `sdpa`, forward and backward; by default and as `flash_attention_3`. Untried here:
  the GPU had no such package.
* `eager`: matrix products and a softmax in float32, as the paper reads; slow, what the others are tested
against.

All three share one contract: q [B, H, S, D]; k, v [B, K, T, D] with K dividing H and T ≥ S, where the queries
are the last S of the T positions; → [B, H, S, D]."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import attention, functional

from stablelm.config import InputError
from stablelm.config.schema import suggest
from stablelm.model.bfloat16_products import FEW, widened_attention, widens


@dataclass(frozen=True)
class Documents:
    """Where the documents of each row end: attention stays inside a document and positions start anew in it.

    `ends[b]` lists the ends of row b's documents, ascending; the last is S."""

    ends: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, document_ids: Tensor) -> "Documents":
        """From [B, S]: neighbouring tokens with equal numbers belong to one document."""
        length = document_ids.shape[1]
        changes = (document_ids[:, 1:] != document_ids[:, :-1]).cpu()
        return cls(tuple((*((row.nonzero()[:, 0] + 1).tolist()), length) for row in changes))

    def positions(self, device: torch.device) -> Tensor:
        """[B, S]: each token's place in its document."""
        rows = [torch.cat([torch.arange(b - a) for a, b in self.spans(row)]) for row in self.ends]
        return torch.stack(rows).to(device)

    def mask(self, device: torch.device) -> Tensor:
        """bool [B, 1, S, S]: the same document, and not later."""
        rows = [
            torch.cat([torch.full((b - a,), number) for number, (a, b) in enumerate(self.spans(ends))])
            for ends in self.ends
        ]
        ids = torch.stack(rows).to(device)
        return (ids[:, None, :, None] == ids[:, None, None, :]).tril()

    @staticmethod
    def spans(ends: tuple[int, ...]) -> list[tuple[int, int]]:
        """First and one past the last position of each document of a row."""
        return list(zip((0, *ends), ends, strict=False))


Mask = Tensor | Documents | None
"""None: causal, nothing padded. bool [B, 1, S, T]: True where query s may attend to key t. Or documents."""
AttentionFunction = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """PyTorch's fused attention; documents one by one: exact, and nothing is computed only to be masked."""
    if isinstance(mask, Documents):
        rows = []
        # `split`, not slices: the gradient of each slice would be a whole tensor of zeros, partly filled.
        for ends, *row in zip(mask.ends, *(torch.split(x, 1) for x in (q, k, v)), strict=True):
            sizes = [j - i for i, j in mask.spans(ends)]
            parts = zip(*(torch.split(x, sizes, dim=2) for x in row), strict=True)
            rows.append(torch.cat([sdpa(a, b, c, None) for a, b, c in parts], dim=2))
        return torch.cat(rows)
    causal = mask is None and q.shape[2] == k.shape[2]
    if mask is None and not causal and q.shape[2] > 1:
        mask = _lower_right(q, k)
    if q.shape[2] >= FEW and widens(q, k, v):
        return widened_attention(q, k, v, mask, causal)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """softmax(q kᵀ/√D) v with the softmax in float32."""
    allowed = (
        mask.mask(q.device) if isinstance(mask, Documents) else _lower_right(q, k) if mask is None else mask
    )
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5  # [B, H, S, T]
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    exact = torch.promote_types(scores.dtype, torch.float32)
    out: Tensor = scores.softmax(-1, dtype=exact).to(q.dtype) @ v
    return out


def flash(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """The `flash_attn` package; what it has no argument for (a padding mask, documents) goes to `sdpa`."""
    if mask is not None:
        return sdpa(q, k, v, mask)
    function: Any = importlib.import_module("flash_attn").flash_attn_func
    out: Tensor = function(*(x.transpose(1, 2) for x in (q, k, v)), causal=True)  # its layout is [B, S, H, D]
    return out.transpose(1, 2)


def _lower_right(q: Tensor, k: Tensor) -> Tensor:
    keys = torch.arange(k.shape[2], device=q.device)
    return keys <= keys[k.shape[2] - q.shape[2] :, None]  # [S, T]


@dataclass(frozen=True)
class Backend:
    """An attention kernel as it was chosen."""

    name: str
    function: AttentionFunction
    reason: str


def choose(name: str | None, device: torch.device, dtype: torch.dtype) -> Backend:
    """The kernel for a wish (None, "sdpa", "eager", "flash_attention_2", "flash_attention_3") on a device;
    says why it is that one."""
    names = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
    if name is not None and name not in names:
        raise InputError(f"attn_implementation {name!r} does not exist{suggest(name, names)}")
    where = "the FlashAttention kernel of PyTorch for " + ("CUDA" if device.type == "cuda" else "the CPU")
    if name == "eager":
        return Backend("eager", eager, "asked for; the reference, slow")
    if name == "flash_attention_2":
        if device.type != "cuda":
            return Backend("sdpa", sdpa, f"flash_attention_2 on {device.type} is {where}")
        if importlib.util.find_spec("flash_attn") is None:
            return Backend("sdpa", sdpa, f"the flash_attn package is not installed; {where}")
        if dtype not in (torch.float16, torch.bfloat16):
            return Backend(
                "sdpa", sdpa, f"flash_attn computes in 16 bits, the model is {dtype}; PyTorch's own"
            )
        return Backend("flash_attention_2", flash, "the flash_attn package is installed")
    if name != "sdpa":
        obstacle = _flash_3(device, dtype)
        if not obstacle:
            return Backend("sdpa", sdpa, "FlashAttention-3 is installed; PyTorch's attention runs it")
        if name == "flash_attention_3":
            return Backend("sdpa", sdpa, f"no FlashAttention-3: {obstacle}; {where}")
    return Backend("sdpa", sdpa, f"{'asked for' if name else 'the default'}; {where}")


def _flash_3(device: torch.device, dtype: torch.dtype) -> str:
    """Makes FlashAttention-3 PyTorch's flash kernel, for the whole process; or says why not."""
    activate = getattr(attention, "activate_flash_attention_impl", None)
    if device.type != "cuda":
        return f"it is for CUDA, the model is on {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in 16 bits, the model is {dtype}"
    if importlib.util.find_spec("flash_attn_interface") is None:
        return "the package flash_attn_interface is not installed"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "it is for compute capability 9 (H100, H200)"
    if activate is None:
        return f"PyTorch {torch.__version__} cannot be given it"
    try:
        activate("FA3")
    except (ImportError, RuntimeError, ValueError) as error:  # built for another PyTorch, say
        return f"it did not load ({error})"
    return ""
