"""Whether texts encoded by one tokenizer can be read by weights that were trained with another.

They can if every old token has its old id; more tokens may follow. Anything else fits every shape, and shows
only as a loss that begins high."""

from stablelm.config import InputError
from stablelm.tokenizer.tokenizer import Tokenizer


def new_words(old: Tokenizer, new: Tokenizer, whose: str) -> list[str]:
    """The tokens that `new` has beside those of `old`, by id. `InputError`, which begins with `whose` old
    tokenizer it is, where an old token has another id or is missing."""
    if old.sha256 == new.sha256:
        return []
    theirs, ours = old.vocab, new.vocab
    differing = [token for token, number in theirs.items() if ours.get(token) != number]
    if differing:
        wrong = min(differing, key=theirs.__getitem__)
        other = f"as id {ours[wrong]:,}" if wrong in ours else "not at all"
        raise InputError(
            f"{whose} has {wrong!r} as id {theirs[wrong]:,}, that of the data ({new.source}) {other}: ids "
            "would mean other words. Prepare the new data with the old tokenizer."
        )
    return sorted(ours.keys() - theirs.keys(), key=ours.__getitem__)
