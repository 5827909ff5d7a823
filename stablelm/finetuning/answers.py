"""How likely whole answers are: sums over their tokens, in passes of some rows, and those of the reference.

The reference is the model as the run begins, an adapter that it starts with included, so no second model is
ever in memory: all answers are read once before the first step, and their sums kept in the run's directory
with hashes of the data and of the model's files. A resumed run reads them there. Costs one forward pass over
the pairs and 16 bytes a pair. Rejected: reading the reference again in each epoch (the same numbers, a third
of a step's work each time)."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from stablelm.finetuning.packing import PairRows
from stablelm.model import StableLM
from stablelm.storage import atomic_file, sha256_file
from stablelm.training.parallel import Layout
from stablelm.training.passes import summed

FILE = "reference.safetensors"
_FILES = (".safetensors", ".bin", ".pt", ".gguf", ".json")


def sums(model: StableLM, samples: Tensor, documents: Tensor, lengths: Sequence[int]) -> Tensor:
    """ln p of each answer in rows of ids [R, L + 1] (v: to be predicted, ~v: read), float64 [answers], with
    its gradient. `documents` [R, L] keep examples apart; `lengths` [answers] are the tokens of their answers,
    in the order in which they lie."""
    inputs, labels = torch.where(samples < 0, ~samples, samples)[:, :-1], samples[:, 1:].flatten()
    places = (labels >= 0).nonzero().squeeze(1)
    device = model.device
    wanted, places = labels[places].to(device), places.to(device)
    told: Tensor = model(inputs.to(device), labels=wanted, document_ids=documents, places=places)[0].double()
    if not lengths:  # a process that no row is left for: the pass is made for the others' sake
        return told
    return torch.segment_reduce(told, "sum", lengths=torch.tensor(lengths, device=device), initial=0)


def lanes_of(samples: Tensor, documents: Tensor, lanes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows of pairs, ids [n, 2 (L + 1)] and documents [n, 2 L], as rows of one side each, lane after lane."""
    ids, kept = samples.chunk(2, dim=1), documents.chunk(2, dim=1)
    return torch.cat([ids[lane] for lane in lanes]), torch.cat([kept[lane] for lane in lanes])


@torch.no_grad()
def answer_sums(
    model: StableLM,
    rows: PairRows,
    count: int,
    batch: int,
    layout: Layout,
    say: Callable[[str], None] = lambda line: None,
) -> Tensor:
    """ln p of both sides of every pair in the first `count` rows, float64 [2, pairs], 0 for the others; equal
    on all processes, which share the rows in passes of `batch` and make equally many."""
    found = torch.zeros(2, len(rows.pairs), dtype=torch.float64, device=model.device)
    begins = range(layout.part * batch, count + layout.part * batch, batch * layout.data)
    for number, first in enumerate(begins):
        chosen = np.arange(first, min(first + batch, count))
        mine = chosen if len(chosen) else np.arange(1)
        samples, documents = torch.from_numpy(rows.ids(mine)), torch.from_numpy(rows.documents(mine))
        if not len(chosen):
            samples = torch.full_like(samples, -1)
        pairs = rows.members(chosen)
        made = sums(model, *lanes_of(samples, documents, (0, 1)), rows.lengths(pairs, (0, 1)))
        found[:, pairs] = made.view(2, len(pairs))
        if number and len(begins) >= 100 and number % (len(begins) // 10) == 0:
            say(f"{100 * number // len(begins)} % of the answers are read")
    return summed(layout, found)


def files_hash(model: Path) -> str:
    """A hash of the files that a model is read from; about 1 s for a GB."""
    files = [model] if model.is_file() else sorted(p for p in model.rglob("*") if p.suffix in _FILES)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(model)} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def write_reference(run: Path, found: dict[str, Tensor], about: dict[str, str]) -> None:
    """Keeps the reference's sums, by side of the data, and what they are of."""
    with atomic_file(run / FILE) as file:
        file.write(save({name: part.cpu() for name, part in found.items()}, about))


def read_reference(run: Path, sizes: dict[str, int]) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """What `write_reference` kept; nothing where it is not there or damaged, no numbers where they are of
    other pairs."""
    try:
        with safetensors.safe_open(run / FILE, framework="np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            about = dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return {}, {}
    if {name: part.shape for name, part in found.items()} != {n: (2, size) for n, size in sizes.items()}:
        return {}, about
    return found, about
