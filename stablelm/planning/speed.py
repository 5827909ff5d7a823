"""How fast a model reads and writes here, beside what the memory of the machine allows.

Writing a token reads every weight once (of the embedding one row) and the keys and values so far, and
computes next to nothing: the limit is the memory, for which the rate of a large copy stands, reading and
writing counted. So tokens/s of two models or machines compare badly, and GB/s well. The first token belongs
to the prefill, which makes it."""

import sys
import time
from dataclasses import dataclass

import torch

from stablelm.inference.cpu_runner import runner_for, token_bytes
from stablelm.inference.runner import Runner
from stablelm.model import StableLM
from stablelm.planning.devices import copy_rate


@dataclass(frozen=True)
class Speed:
    """One text, or the median of several."""

    prompt_tokens: int
    prefill_seconds: float
    """Until the first new token's logits."""
    new_tokens: int
    """After the first."""
    decode_seconds: float
    bytes_per_token: float
    """Read to write one token, the mean over the text."""

    @property
    def prefill(self) -> float:
        """Tokens a second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode(self) -> float:
        """Tokens a second; 0 when only one was written."""
        return self.new_tokens / self.decode_seconds if self.new_tokens else 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes a second that decoding read."""
        return self.decode * self.bytes_per_token

    def lines(self, device: torch.device, one_by_one: bool = True) -> list[str]:
        """For a reader, beside the copy rate of `device`, which is measured; unless tokens were read ahead,
        where a pass is not a token."""
        first = f"prefill: {self.prompt_tokens:,} tokens in {self.prefill_seconds:.3f} s"
        if not self.new_tokens:
            return [f"{first}, {self.prefill:,.1f} tokens/s", "decode: a single token was written, no rate"]
        rate = f"{self.new_tokens:,} tokens in {self.decode_seconds:.3f} s, {self.decode:,.1f} tokens/s"
        if not one_by_one:
            return [f"{first}, {self.prefill:,.1f} tokens/s", f"decode: {rate}"]
        limit = copy_rate(device)
        read = f"reads {self.bandwidth / 1e9:.3g} GB/s, a copy {limit / 1e9:.3g} GB/s"
        return [f"{first}, {self.prefill:,.1f} tokens/s", f"decode: {rate}; {read}"]


def bytes_per_token(model: StableLM, length: float) -> float:
    """Bytes read to write one token after `length` tokens: the weights but the embedding, keys and values."""
    weights: int = sum(t.nbytes for name, t in model.state_dict().items() if "embed_tokens" not in name)
    return weights + length * token_bytes(model)


def speed_of(model: StableLM, prompt_tokens: int, began: float, times: list[float]) -> Speed:
    """From the clock at the beginning and at each new token (at least one)."""
    new = len(times) - 1
    mean = bytes_per_token(model, prompt_tokens + new / 2)
    return Speed(prompt_tokens, times[0] - began, new, times[-1] - times[0], mean)


@torch.inference_mode()
def measure(model: StableLM, prompt_tokens: int, new_tokens: int, rounds: int = 3) -> Speed:
    """The median prefill and decode of `rounds` texts (ids drawn evenly), after one that warms up.

    Greedy from the head alone, without a tokenizer: what `generate` adds to it is not measured."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=generator).to(model.device)
    found: list[Speed] = []
    for _ in range(rounds + 1):
        runner: Runner = runner_for(model)
        times: list[float] = []
        began = _clock(model.device)
        logits = runner.prefill(ids, None, prompt_tokens + new_tokens)
        for _ in range(new_tokens):
            chosen = logits.argmax(-1)
            times.append(_clock(model.device))
            logits = runner.step(chosen)
        times.append(_clock(model.device))
        found.append(speed_of(model, prompt_tokens, began, times))
    prefill = sorted(one.prefill_seconds for one in found[1:])[rounds // 2]
    decode = sorted(one.decode_seconds for one in found[1:])[rounds // 2]
    return Speed(prompt_tokens, prefill, new_tokens, decode, found[0].bytes_per_token)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of the GPU what PyTorch took, else resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
