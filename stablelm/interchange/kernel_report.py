"""Which kernels a model would use on a device, and why: `stablelm inspect MODEL --kernels`.

The answer comes from the functions that choose when a model is opened, and for PyTorch's fused attention
from PyTorch's own choice for this model's head dimensions and precision, asked on a few tokens. Reads no
weights."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend

from stablelm.config import ModelConfig
from stablelm.inference.cpu_runner import decoding
from stablelm.inference.quantization import kernels_in_use
from stablelm.model import StableLM
from stablelm.model.backends import choose

_WISHES = {
    "attention": None,
    "attention_if_flash_attention_2": "flash_attention_2",
    "attention_if_eager": "eager",
}
_TOKENS = 16


def kernel_report(model: StableLM, device: torch.device) -> dict[str, Any]:
    """Facts: for every `attn_implementation`, the kernel chosen and the reason; then what PyTorch takes for
    `sdpa` in prefill (causal), decoding (one query) and with padding (a mask)."""
    config, dtype = model.config, model.compute_dtype or model.dtype
    wishes = {}
    for shown, wish in _WISHES.items():
        backend = choose(wish, device, dtype)
        wishes[shown] = f"{backend.name}: {backend.reason}"
    return {
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        **wishes,
        "sdpa_in_prefill": _fused(config, device, dtype, _TOKENS, masked=False),
        "sdpa_in_decoding": _fused(config, device, dtype, 1, masked=False),
        "sdpa_with_padding": _fused(config, device, dtype, _TOKENS, masked=True),
        "quantised_weights": kernels_in_use(device),
        "decoding": decoding(model, device),
        "rotary_swiglu_norm": f"{model.fused.name}: {model.fused.reason}",
        "everything_else": "PyTorch operators",
    }


def _fused(config: ModelConfig, device: torch.device, dtype: torch.dtype, queries: int, masked: bool) -> str:
    heads, shared, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q = torch.zeros(1, heads, queries, width, device=device, dtype=dtype)
    k = torch.zeros(1, shared, _TOKENS, width, device=device, dtype=dtype)
    mask = torch.ones(1, 1, queries, _TOKENS, device=device, dtype=torch.bool) if masked else None
    causal = not masked and queries == _TOKENS
    chosen = torch._fused_sdp_choice(q, k, k, mask, 0.0, causal, enable_gqa=heads != shared)
    return f"{SDPBackend(chosen).name} (head dimension {width})"
