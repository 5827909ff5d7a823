"""Logits of a model here beside `transformers`' on the same files, teacher-forced on one text.

In float32 the largest difference must stay below 1e-3. In bfloat16 rounding decides, so the rule is: the
largest difference is no larger than what bfloat16 costs `transformers` itself (its bfloat16 beside its
float32), and the likeliest token is the same wherever its lead over the second exceeds twice that difference.
One network is in memory at a time: 4 bytes a parameter, 11.2 GB for the 2.8B model."""

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Both sides multiply by PyTorch: ours else rounds bf16 otherwise on CPUs that have no bf16 products.
os.environ["STABLELM_WIDEN_BF16"] = "0"

TEXT = (
    "The weather is always wonderful in the mountains, they say, until it is not. A traveller who sets out "
    "at dawn should carry bread, a coat and a map; who sets out at noon should carry a second coat. In 1887 "
    "the post coach took eleven hours over the pass:\n\n    def hours(distance, pace=4.5):\n        return "
    "distance / pace\n\nThat is still about right. Nobody walks it faster, and most people who try come back "
    "with a story instead of a time."
)
FLOAT32_LIMIT = 1e-3


def token_ids(path: Path, vocabulary: int, count: int) -> Tensor:
    """[1, count] ids: of the text where there is a tokenizer, else drawn from a fixed seed."""
    if (path / "tokenizer.json").is_file():
        from stablelm import AutoTokenizer

        ids = AutoTokenizer.from_pretrained(path).encode(TEXT)
        return torch.tensor([ids[:count]])
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, min(vocabulary, 50_277), (1, count), generator=generator)


def logits(library: Any, path: Path, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[S, V] in float32, of the model at `path` computed in `dtype`."""
    model = library.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    with torch.no_grad():
        out = model(ids)
    found: Tensor = getattr(out, "logits", out)[0].float()
    del model, out
    gc.collect()
    return found


def compare(path: Path, count: int) -> list[str]:
    """Prints the four comparisons; returns what is not as it should be."""
    import transformers

    import stablelm

    vocabulary = transformers.AutoConfig.from_pretrained(path).vocab_size
    ids = token_ids(path, vocabulary, count)
    theirs = {dtype: logits(transformers, path, ids, dtype) for dtype in (torch.float32, torch.bfloat16)}
    ours = {dtype: logits(stablelm, path, ids, dtype) for dtype in theirs}
    exact, rounded = torch.float32, torch.bfloat16
    single = float((ours[exact] - theirs[exact]).abs().max())
    error = float((ours[rounded] - theirs[rounded]).abs().max())
    own = float((theirs[rounded] - theirs[exact]).abs().max())
    top = theirs[rounded].topk(2)
    clear = top.values[:, 0] - top.values[:, 1] > 2 * error
    same = ours[rounded].argmax(-1) == top.indices[:, 0]
    print(f"{ids.shape[1]} tokens; largest logit {float(theirs[exact].abs().max()):.3f}")
    print(f"float32: largest difference {single:.2e} (limit {FLOAT32_LIMIT:g})")
    print(f"bfloat16: largest difference {error:.2e}; of transformers' own rounding {own:.2e}")
    print(f"likeliest token the same at {int(same.sum())} of {len(same)}, {int(clear.sum())} of them clear")
    faults = []
    if single > FLOAT32_LIMIT:
        faults.append(f"float32 logits differ by {single:.2e}")
    if error > own:
        faults.append(f"bfloat16 logits differ by {error:.2e}, more than rounding does ({own:.2e})")
    if not bool(same[clear].all()):
        faults.append("the likeliest token differs where the lead is clear")
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a Hugging Face directory")
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    found = compare(options.path, options.tokens)
    print("\n".join(f"FAILED: {fault}" for fault in found) or "logits agree")
    sys.exit(1 if found else 0)
