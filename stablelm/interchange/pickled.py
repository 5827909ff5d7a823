"""Weights in a pickle (`pytorch_model.bin`): read only when asked for (`allow_pickle`), and as data only.

PyTorch's restricted unpickler (`weights_only=True`) builds tensors and plain containers and nothing else; a
file that asks for more is refused, never run. The zip format is memory-mapped, so this costs no more than
safetensors; the format from before 2020 is read whole."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.storage import confined, read_json

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_AGAIN = "Download or copy the file again."


def load_pickle(file: Path) -> Any:
    """What a pickle of tensors holds, mapped where its format allows; `InputError` when it is broken or asks
    to run code."""
    try:
        with open(file, "rb") as opened:
            mapped = zipfile.is_zipfile(opened)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if re.search(r"GLOBAL|Unsupported class|not callable|is not allowed", str(error)):
            raise InputError(
                f"{file}: holds more than weights: loading it would run code from it. It is not opened. "
                "Ask for the weights as safetensors."
            ) from None
        raise InputError(f"{file}: not a file of weights, or damaged. {_AGAIN}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}). {_AGAIN}") from None
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        raise InputError(f"{file}: not a file of weights, or damaged. {_AGAIN}") from None


def pickled_state(file: Path) -> dict[str, Tensor]:
    """A pickled state dict: tensors by name."""
    content = load_pickle(file)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise InputError(f"{file}: not a state dict: a table of names to tensors is wanted.")
    return content


def pickled_files(directory: Path) -> list[Path]:
    """The pickles that hold a directory's weights: one, or those that its index names; empty when there are
    none."""
    if (directory / PICKLED).is_file():
        return [directory / PICKLED]
    if not (directory / PICKLED_INDEX).is_file():
        return []
    content = read_json(directory / PICKLED_INDEX)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise InputError(f"{directory / PICKLED_INDEX}: no weight_map from tensor names to files. {_AGAIN}")
    files = [confined(directory, file) for file in sorted(set(names.values()))]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: missing, although {PICKLED_INDEX} names it. {_AGAIN}")
    return files
