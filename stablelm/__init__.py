"""StableLM: an open, independent implementation of the system behind StableLM-3B-4E1T.

Importing this package is cheap: each name below loads its room (and PyTorch) on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stablelm.auto import AutoModelForCausalLM, AutoTokenizer, load
    from stablelm.config import InputError, ModelConfig, RunConfig
    from stablelm.evaluation.evaluate import evaluate
    from stablelm.inference import generate
    from stablelm.model import StableLM
    from stablelm.training import train

__version__ = "0.1.0"

_HOME = {
    "AutoModelForCausalLM": "stablelm.auto",
    "AutoTokenizer": "stablelm.auto",
    "load": "stablelm.auto",
    "InputError": "stablelm.config",
    "ModelConfig": "stablelm.config",
    "RunConfig": "stablelm.config",
    "StableLM": "stablelm.model",
    "evaluate": "stablelm.evaluation.evaluate",
    "generate": "stablelm.inference",
    "train": "stablelm.training",
}

__all__ = [
    "AutoModelForCausalLM", "AutoTokenizer", "InputError", "ModelConfig", "RunConfig", "StableLM", "evaluate",
    "generate", "load", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'stablelm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
