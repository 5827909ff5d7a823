"""What a run may change of the weights it starts from, and what it must tell.

`adapt` names keys of the architecture that say how the same weights are used: the rotary base and the
context. Rotary angles are computed from the configuration in each pass, so no weight changes. The data may
have more tokens than the weights have read (those of infilling, in the padded part of the vocabulary), never
others: a tokenizer whose ids mean something else fits every shape, and the loss only looks like a bad
start."""

from hashlib import sha256
from typing import Any

from stablelm.config import InputError, ModelConfig, RunConfig
from stablelm.config.adaptation import AdaptConfig
from stablelm.interchange.gguf import is_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.neox import is_neox
from stablelm.interchange.open import locate
from stablelm.interchange.provenance import adaptation_text
from stablelm.interchange.quantized import is_quantized
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.comparison import new_words


def adaptation(given: ModelConfig, config: RunConfig, init: str) -> dict[str, list[Any]]:
    """Key of the architecture → its value in the weights `init` and in the run, where they differ.

    `InputError` where they may not."""
    differing = {
        name: [getattr(given, name), getattr(config.model, name)]
        for name in type(given).model_fields
        if getattr(given, name) != getattr(config.model, name)
    }
    allowed = config.adapt.changes()
    refused = [name for name in differing if name not in allowed]
    if refused:
        before, now = differing[refused[0]]
        others = "".join(f"; also {name} {differing[name][0]}" for name in refused[1:])
        adaptable = [name for name in refused if name in AdaptConfig.model_fields]
        change = f" (adapt.{adaptable[0]} changes it on purpose)" if adaptable else ""
        raise InputError(
            f"init: {init} has {refused[0]} {before}, model.{refused[0]} is {now}{others}. Give the run the "
            f"architecture of its initial weights{change}."
        )
    return differing


def refuse_packed(init: str) -> None:
    """`InputError` where the initial weights are packed: their products have no weight that could learn."""
    folder = resolve(init)
    if not is_gguf(folder) and not is_neox(folder) and is_quantized(locate(folder)):
        raise InputError(
            f"init: {init}: its weights are packed, and packed weights cannot be trained. Start from the "
            "model that they were made from."
        )


def told_adaptation(adapted: dict[str, list[Any]], length: int) -> list[str]:
    """What to tell of an adaptation when a run with windows of `length` tokens starts."""
    if not adapted:
        return []
    lines = [f"{adaptation_text(adapted)}, as adapt says"]
    before, now = adapted.get("max_position_embeddings", (0, 0))
    if length <= before < now:
        lines.append(
            f"warning: batch.sequence_length {length:,} trains nothing beyond the old context of {before:,}; "
            f"set it to {now:,}"
        )
    if before < now and "rope_theta" not in adapted:
        lines.append("the rotary base stays; a larger one (adapt.rope_theta) usually learns faster")
    return lines


def same_words(given: Tokenizer, content: bytes, source: str) -> str:
    """What to tell of a tokenizer.json, `content` of `source`, whose tokens the weights of `given` are to
    read: nothing where it is theirs, else which ids are new. `InputError` where they cannot read them."""
    if sha256(content).hexdigest() == given.sha256:
        return ""
    ours = Tokenizer(content, source)
    new = new_words(given, ours, f"init: its tokenizer ({given.source})")
    if not new:
        return ""
    named = ", ".join(f"{token} ({ours.token_to_id(token)})" for token in new[:4])
    more = ", …" if len(new) > 4 else ""
    return f"{source}: ids that the initial weights have never read, learnt from now on: {named}{more}"
