"""The model as lm_eval sees it; the harness chooses tasks, prompts and metrics.

Continuations go through `scoring.py`: common beginnings once, rows by length, no begin-of-text token, softmax
over all columns of the head, as in the published runs. Scores already known (`ScoreCache`) are not computed
again, so an interrupted evaluation goes on where it was.

`python -m stablelm.evaluation.harness run --model stablelm --model_args pretrained=PATH --tasks arc_easy` is
lm_eval's own command line with this model in it."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from stablelm.config import InputError
from stablelm.evaluation.score_cache import ScoreCache
from stablelm.evaluation.scoring import BATCH_TOKENS, Score, score
from stablelm.evaluation.shares import ALONE, Share
from stablelm.inference import generate
from stablelm.interchange.open import open_path
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer


@functools.cache
def backend() -> Any:
    """The class that lm_eval works with, registered there as `stablelm`; `InputError` without lm_eval."""
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise InputError('evaluation tasks need lm_eval: pip install "stablelm[eval]"') from None
    return register_model("stablelm")(type("StableLMBackend", (_Backend, TemplateLM), {}))


class _Backend:
    """`lm_eval`'s model interface over a StableLM; `backend` joins it with lm_eval's base class."""

    cache_hook: Any
    prefix_token_id: int

    def __init__(
        self,
        pretrained: str | StableLM,
        tokenizer: Tokenizer | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_length: int | str | None = None,
        device: str | None = None,
        cache: ScoreCache | None = None,
        batch_tokens: int | None = None,
        progress: bool = True,
        share: Share = ALONE,
        **unknown: Any,
    ) -> None:
        """`pretrained`: a path, a Hub id or a model (then with its tokenizer). `batch_size` is in sequences
        of the longest kind; by default passes have about 4,096 tokens. With a `share`, processes score
        together."""
        super().__init__()
        unknown.pop("max_batch_size", None)
        if unknown:
            raise InputError(
                f"model_args: unknown {', '.join(sorted(unknown))}; known are pretrained, dtype, max_length."
            )
        if isinstance(pretrained, StableLM):
            assert tokenizer is not None
            self.model, self._tokenizer = pretrained, tokenizer
        else:
            self.model, self._tokenizer = _open(str(pretrained), dtype, device)
        if share is ALONE:  # a network that is being trained has nothing to switch off
            self.model.eval()
        self._share = share
        self.max_length = int(max_length or self.model.config.max_position_embeddings)
        rows = None if batch_size in (None, "auto") else int(str(batch_size).removeprefix("auto:"))
        self._batch_tokens = batch_tokens or (BATCH_TOKENS if rows is None else rows * self.max_length)
        self._quiet = not progress
        self._cache = ScoreCache() if cache is None else cache
        self.truncated = 0
        """Requests whose beginning was cut off because they were longer than the context."""

    @property
    def eot_token_id(self) -> int:
        """What an empty context is replaced by."""
        return self._tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return type(self._tokenizer).__name__

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, nothing added."""
        return self._tokenizer.encode(string, add_special_tokens=False)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding would write."""
        base: Any = super()
        found: list[tuple[float, bool]] = base.loglikelihood(requests, disable_tqdm or self._quiet)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(tuple(before), tuple(after)) for _, before, after in requests]
        self.truncated += sum(len(before) + len(after) > self.max_length + 1 for before, after in pairs)
        wanted = [pair for pair in dict.fromkeys(pairs) if pair not in self._cache]
        with self._progress("Scoring", len(wanted), disable_tqdm) as advance:

            def keep(found: Mapping[int, Score]) -> None:
                self._cache.add({wanted[number]: result for number, result in found.items()})
                advance(len(found))

            found = score(
                self.model, wanted, context=self.max_length, batch_tokens=self._batch_tokens, on_batch=keep,
                share=self._share,
            )  # fmt: skip
        if self._share.parts > 1:  # `keep` has heard of this process's own
            self._cache.add(dict(zip(wanted, found, strict=True)))
        results = []
        for request, pair in zip(requests, pairs, strict=True):
            known = self._cache[pair]
            results.append((known.loglikelihood, known.greedy))
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], results[-1])
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the context's length that do not overlap."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            own = list(self._windows(request.args[0]))
            counts.append(len(own))
            windows += [(None, before, after) for before, after in own]
        values = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(values)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        from lm_eval import utils

        rolling = utils.get_rolling_token_windows(
            self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
        )
        yield from map(utils.make_disjoint_window, rolling)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string; greedy unless the task asks for a temperature."""
        texts = []
        with self._progress("Generating", len(requests), disable_tqdm) as advance:
            for request in requests:
                context, settings = request.args
                settings = dict(settings)
                until = settings.pop("until", [])
                stop = [until] if isinstance(until, str) else list(until)
                count = int(settings.pop("max_gen_toks", 256))
                temperature = float(settings.pop("temperature", 0.0) or 0.0)
                temperature = temperature if settings.pop("do_sample", temperature > 0) else 0.0
                ids, room = self.tok_encode(context), self.max_length - count
                text = context if len(ids) <= room else self._tokenizer.decode(ids[-room:])
                texts.append(self._continue(text, count, temperature, [word for word in stop if word]))
                self.cache_hook.add_partial("generate_until", request.args, texts[-1])
                advance(1)
        return texts

    @contextlib.contextmanager
    def _progress(self, what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
        """A bar on standard error, and how to move it on."""
        if quiet or self._quiet or not total:
            yield lambda count: None
            return
        with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)

    def _continue(self, prompt: str, count: int, temperature: float, stop: list[str]) -> str:
        return generate(
            self.model,
            self._tokenizer,
            prompt,
            max_new_tokens=count,
            temperature=temperature,
            seed=0,
            stop=stop,
        )


def _open(path: str, dtype: str, device: str | None) -> tuple[StableLM, Tokenizer]:
    precision = None if dtype == "auto" else getattr(torch, dtype, None)
    if dtype != "auto" and not isinstance(precision, torch.dtype):
        raise InputError(f"dtype {dtype!r} does not exist; write auto, float32 or bfloat16.")
    model, tokenizer = open_path(path, dtype=precision)
    if tokenizer is None:
        raise InputError(f"{path}: has no tokenizer.json; evaluation works on text.")
    wanted = device if device and not (device.startswith("cuda") and not torch.cuda.is_available()) else "cpu"
    return model.to(wanted), tokenizer  # lm_eval asks for cuda:0 where nobody has said anything


def main() -> None:
    """lm_eval's command line, which knows the model `stablelm`."""
    backend()
    from lm_eval.__main__ import cli_evaluate

    if Path(sys.argv[0]).name == "harness.py":
        sys.argv[0] = "python -m stablelm.evaluation.harness"
    cli_evaluate()


if __name__ == "__main__":
    main()
