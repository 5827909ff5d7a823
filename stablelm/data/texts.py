"""Many texts as one array: what the loops over text read.

UTF-8 bytes back to back and where each text ends. A shard of documents on the disk has this form already,
so a kernel reads it through the page cache without making a Python string."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Texts:
    """n texts: text i is data[ends[i − 1] : ends[i]], the first from 0."""

    data: NDArray[np.uint8]
    """UTF-8, [bytes]."""
    ends: NDArray[np.int64]
    """One past the last byte of each text, [n]."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """From strings without lone surrogates."""
        encoded = [text.encode() for text in texts]
        ends = (
            np.cumsum([len(text) for text in encoded], dtype=np.int64) if encoded else np.zeros(0, np.int64)
        )
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def start(self, number: int) -> int:
        """Where text `number` begins."""
        return int(self.ends[number - 1]) if number else 0

    def raw(self, number: int) -> bytes:
        """The UTF-8 bytes of text `number`."""
        return self.data[self.start(number) : int(self.ends[number])].tobytes()

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(f"text {number} of {len(self)}")
        return self.raw(number).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))
