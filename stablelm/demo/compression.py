"""What general compressors make of the same text: the yardstick beside a small model's bits per byte.

The documents are concatenated, so a compressor may use all it has seen before, as a model may use its
training text; gzip looks back 32 KB, xz over everything."""

import gzip
import lzma
from collections.abc import Sequence


def compressed_bits_per_byte(texts: Sequence[str]) -> dict[str, float]:
    """Compressed bits per UTF-8 byte of the documents concatenated, headers included; empty text gives 0."""
    raw = "".join(texts).encode()
    sizes = {
        "gzip -9": len(gzip.compress(raw, compresslevel=9, mtime=0)),
        "xz": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / len(raw) if raw else 0.0 for name, size in sizes.items()}
