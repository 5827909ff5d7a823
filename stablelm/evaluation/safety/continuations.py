"""Texts that a model writes after prompts, kept so that an interrupted evaluation does not write them again.

Nucleus sampling with p = 0.9 at temperature 1, as RealToxicityPrompts has it (Gehman et al., 2020). Text n
draws with seed n, so it is the same whatever is written beside it."""

from collections.abc import Callable, Sequence

from stablelm.evaluation.item_cache import ItemCache, key_of
from stablelm.inference import Sampling, generate
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

TOP_P = 0.9
BATCH = 8


def continuations(
    model: StableLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    each: int,
    tokens: int,
    known: ItemCache[str],
    on_texts: Callable[[int], object] = lambda count: None,
) -> list[list[str]]:
    """`each` continuations of at most `tokens` tokens for every prompt; `on_texts` hears of those done.

    `InputError` for a prompt that does not fit the context with them."""
    asked = [prompt for prompt in prompts for _ in range(each)]
    keys = [key_of([prompt, number, tokens, TOP_P]) for number, prompt in enumerate(asked)]
    for first in range(0, len(asked), BATCH):
        some = range(first, min(first + BATCH, len(asked)))
        if not all(keys[n] in known for n in some):
            sampling = Sampling(temperature=1.0, top_p=TOP_P, seed=first)
            texts = generate(
                model, tokenizer, [asked[n] for n in some], max_new_tokens=tokens, sampling=sampling
            )
            known.add({keys[n]: text for n, text in zip(some, texts, strict=True)})
        on_texts(len(some))
    return [[known[keys[row * each + n]] for n in range(each)] for row in range(len(prompts))]
