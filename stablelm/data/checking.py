"""`stablelm data verify`: every byte of a prepared directory, read again.

Hashes against the manifest, counts against the token files, every id below the tokenizer's size, every
document ended as the manifest says; then some documents, drawn by hash, decoded for a person to look at."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stablelm.config import InputError
from stablelm.data.manifest import SIDES, Dataset
from stablelm.data.token_files import TokenFile
from stablelm.storage import keyed_uint64
from stablelm.tokenizer import Tokenizer

_BLOCK = 1 << 24
_SHOWN = 200


def verify(directory: str | Path, samples: int = 1) -> Iterator[str]:
    """Lines about what was checked, and `samples` decoded documents of each source; `InputError` names the
    first file that is not as it was written."""
    dataset = Dataset(directory)
    files = dataset.verify()
    yield f"{dataset.path}: {len(files):,} files have the size and sha256 of the manifest"
    tokenizer = Tokenizer.from_file(dataset.tokenizer_path)
    for source in dataset.sources:
        for side in SIDES:
            file = dataset.train(source) if side == "train" else dataset.held_out(source)
            if file is None or not file.num_documents:
                continue
            largest = _check(dataset, file, f"{source}/{side}", tokenizer)
            yield (
                f"{source}, {side}: {file.num_documents:,} documents, {file.num_tokens:,} tokens, largest id "
                f"{largest:,} of {tokenizer.size:,}"
            )
            if side == "train":
                yield from _samples(dataset, source, file, tokenizer, samples)


def _check(dataset: Dataset, file: TokenFile, name: str, tokenizer: Tokenizer) -> int:
    """Ids in range, and every document ended by one separator, which none holds inside; the largest id."""
    eod, largest, separators = tokenizer.eos_id, 0, 0
    for start in range(0, file.num_tokens, _BLOCK):
        block = file.tokens(start, min(_BLOCK, file.num_tokens - start))
        largest, separators = max(largest, int(block.max())), separators + int((block == eod).sum())
    if largest >= tokenizer.size:
        raise InputError(
            f"{dataset.path}/{name}: id {largest:,}; {dataset.tokenizer_path} has {tokenizer.size:,}. Make "
            "the directory again with `stablelm data prepare`."
        )
    ends = np.cumsum(np.asarray(file.sizes, dtype=np.int64)) - 1
    ended = sum(int(file.tokens(int(end), 1)[0]) == eod for end in ends.tolist())
    wanted = file.num_documents if dataset.manifest["append_eod"] else 0
    if separators != wanted or (wanted and ended != wanted):
        raise InputError(
            f"{dataset.path}/{name}: {separators:,} separators, {ended:,} of them at the end of a document; "
            f"{wanted:,} documents want one each. Make the directory again with `stablelm data prepare`."
        )
    return largest


def _samples(
    dataset: Dataset, source: str, file: TokenFile, tokenizer: Tokenizer, count: int
) -> Iterator[str]:
    numbers = sorted({keyed_uint64("sample", source, n) % file.num_documents for n in range(count)})
    ids = dataset.document_ids(source, numbers)
    for number in numbers:
        text = tokenizer.decode(file.document(number)[: _SHOWN // 2], skip_special_tokens=True)
        shown = " ".join(text.split())[:_SHOWN]
        yield f"  document {number:,} ({ids[number]}): {shown}…"
