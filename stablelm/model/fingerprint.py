"""What tells one model's numbers from another's: a hash of its weights."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from stablelm.model import StableLM
from stablelm.model.adapters import active


def weights_hash(model: StableLM) -> str:
    """A hash of all weights, their names and precision, and the arithmetic with the adapter in use: about 1 s
    a GB."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{model.compute_dtype}{active(model) or ''}".encode())
    tensors: Sequence[tuple[str, Any]] = sorted(model.state_dict().items())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()
