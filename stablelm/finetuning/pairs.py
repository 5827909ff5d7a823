"""Records to what preferences are learnt from: two answers to one prompt, or one answer and a verdict.

    prompt, chosen, rejected      texts; or messages in all three; or a prompt's text and lists that answer it
    chosen, rejected              two conversations: what both begin with is the prompt
    prompt, completion, label     an answer that is wanted (true) or not (false); texts or messages

Each answer is an example as supervised tuning would read it (`examples.py`): the prompt's ids, the answer's,
and the separator after it; ids of the answer are told from the others. Of a conversation only the assistant's
messages behind the prompt are the answer, so a turn of the user between two of them is read, not compared.

KTO also asks how likely answers are after prompts that they do not belong to (its z₀). That side of an
example is its own prompt and the answer of the next example whose prompt is another: fixed by the data alone,
so the estimate depends on neither passes nor processes."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.data.documents import kind_of
from stablelm.finetuning.conversations import (
    Fault,
    Message,
    Segment,
    check_order,
    checked_text,
    said,
)
from stablelm.finetuning.examples import Account, Example, ExampleReader

PAIR, JUDGED = ("chosen", "rejected"), ("prompt", "completion", "label")
CHATS = ("chat pairs", "judged chats")
"""Formats that a chat template writes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two sides that share a prompt: chosen and rejected; of KTO, an answer and a mismatched one."""

    first: Example
    second: Example | None
    """None: of KTO, until all answers are known."""
    wanted: bool = True
    """Whether the first side is an answer to learn (KTO's label)."""

    @property
    def ids(self) -> NDArray[np.int32]:
        """All that says which pair it is: equal ids, equal pairs."""
        told = np.array([self.wanted], dtype=np.int32)
        return np.concatenate([self.first.ids, told if self.second is None else self.second.ids])

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the first side's answer."""
        return self.first.text_bytes

    @property
    def where(self) -> str:
        """File and line."""
        return self.first.where

    @property
    def sides(self) -> tuple[Example, ...]:
        """Those that are there."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def trained(self) -> int:
        """Tokens of the answers."""
        return sum(side.trained for side in self.sides)


def mismatched(judged: Sequence[Pair], longest: int) -> list[Pair]:
    """KTO's examples, each with a second side: its prompt with the answer of another."""
    prompts = [one.first.ids[: _answer_at(one.first)].tobytes() for one in judged]
    found = []
    for number, one in enumerate(judged):
        others = (*range(number + 1, len(judged)), *range(number))
        other = next((n for n in others if prompts[n] != prompts[number]), (number + 1) % len(judged))
        own, answer = one.first.ids, judged[other].first.ids
        ids = np.concatenate([own[: _answer_at(one.first)], answer[_answer_at(judged[other].first) :]])
        found.append(dataclasses.replace(one, second=Example(ids[:longest], 0, one.where)))
    return found


def _answer_at(example: Example) -> int:
    return int(np.argmax(example.ids >= 0))


class PairReader(ExampleReader):
    """Pairs out of files."""

    judging = False
    """Examples of KTO are wanted; a pair makes two."""

    def read(self, paths: Sequence[str], account: Account) -> list[Pair]:  # type: ignore[override]
        """All pairs of some files, in their order; errors as of examples."""
        return super().read(paths, account)  # type: ignore[return-value]  # what `_examples` below gives

    def _examples(  # type: ignore[override]
        self, records: Iterable[tuple[str, Any]], account: Account
    ) -> Iterator[Pair]:
        wanted: tuple[str, ...] = ()
        for where, record in records:
            account.read += 1
            try:
                if not isinstance(record, Mapping):
                    raise Fault("wrong type", f"{kind_of(record)}; wanted is an object")
                named = self._named(record)
                judged = "label" in named
                answers = self._answers(named)
                chats = (
                    CHATS[judged] if isinstance(answers[0], list) else ("text pairs", "judged texts")[judged]
                )
                if chats in CHATS and account.format not in CHATS:
                    self.chat.check()
                account.format = account.format or chats
                if chats != account.format:
                    raise Fault("another shape", f"{chats}, where the first record is of {account.format}")
                found = self._pairs([*self._sides(answers, where, account)], named)
            except Fault as fault:
                self._left_out(fault, where, account)
                continue
            wanted = tuple(self._theirs(name) for name in named)
            account.unread.update(str(key) for key in record if key not in wanted)
            account.kept += bool(found)
            yield from found

    def _named(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Our name → value of what is read of a record."""
        have = {name: record[key] for name in (*PAIR, *JUDGED) if (key := self._theirs(name)) in record}
        if set(PAIR) <= set(have):
            return {name: have[name] for name in ("prompt", *PAIR) if name in have}
        there = ", ".join(map(repr, record)) or "none"
        if set(JUDGED) <= set(have):
            if self.judging:
                return {name: have[name] for name in JUDGED}
            raise Fault(
                "missing key",
                f"the keys {there} are a judged answer, which preference.loss: kto learns from; dpo and ipo "
                "want chosen and rejected",
            )
        shapes = "prompt, chosen and rejected; or chosen and rejected, two conversations"
        if self.judging:
            shapes = f"prompt, completion and label; {shapes}"
        raise Fault(
            "missing key",
            f"the keys {there} fit no shape of preferences: {shapes}. Name them, as --set "
            "'data.keys={chosen: better, rejected: worse}'",
        )

    def _answers(self, named: Mapping[str, Any]) -> list[list[Message] | tuple[str, str]]:
        """Each side's conversation, or prompt and answer."""
        keys = PAIR if "label" not in named else ("completion",)
        shown = [self._theirs(key) for key in keys]
        values = [named[key] for key in keys]
        prompt = named.get("prompt")
        if "label" in named and not isinstance(named["label"], bool):
            label = named["label"]
            raise Fault(
                "label not a bool",
                f"{self._theirs('label')!r} is {label!r}; wanted is true (an answer to learn) or false",
            )
        if all(isinstance(value, str) for value in values) and not isinstance(prompt, list):
            if prompt is None:
                raise Fault(
                    "no prompt",
                    f"{' and '.join(map(repr, shown))} are texts without {self._theirs('prompt')!r}. Give "
                    "what they answer as prompt, or all as messages",
                )
            asked = checked_text(prompt, repr(self._theirs("prompt")))
            texts = [
                self._written(value, key, "the answer") for key, value in zip(shown, values, strict=True)
            ]
            if len(texts) == 2 and texts[0].strip() == texts[1].strip():
                raise Fault("equal answers", f"{shown[0]!r} and {shown[1]!r} are the same text")
            return [(asked, text) for text in texts]
        talks = [said(value, key) for key, value in zip(shown, values, strict=True)]
        return [*self._talks(prompt, talks, shown)]

    def _talks(
        self, prompt: Any, talks: list[list[Message]], shown: Sequence[str]
    ) -> Iterator[list[Message]]:
        """Conversations of one beginning, in which only what comes after it is to be written."""
        theirs = self._theirs("prompt")
        shared = 0
        if len(talks) == 2:
            pairs = zip(*([(m.role, m.content) for m in talk] for talk in talks), strict=False)
            shared = next((n for n, (a, b) in enumerate(pairs) if a != b), min(map(len, talks)))
            if shared == max(map(len, talks)):
                raise Fault("equal answers", f"{shown[0]!r} and {shown[1]!r} are the same messages")
        begun = [talk[0].role != "assistant" for talk in talks]
        if prompt is None or (isinstance(prompt, str) and all(begun)):
            if prompt is None and len(talks) == 1:
                raise Fault("wrong type", f"{theirs!r} is null; wanted are a text or messages")
            if len(talks) == 1:
                raise Fault(
                    "unequal prompts", f"{shown[0]!r} begins anew behind a prompt; give the answer alone"
                )
            before = talks[0][:shared]
            asked = [message.content for message in before if message.role == "user"]
            if prompt is not None and prompt.strip() not in (text.strip() for text in asked):
                raise Fault(
                    "unequal prompts", f"{theirs!r} is not what {shown[0]!r} and {shown[1]!r} begin with"
                )
            rests = [talk[shared:] for talk in talks]
        else:
            before = [Message("user", checked_text(prompt, repr(theirs)))] if isinstance(prompt, str) else []
            before = before or said(prompt, theirs)
            rests = talks
        if (
            not before
            or before[-1].role != "user"
            or not all(rest and rest[0].role == "assistant" for rest in rests)
        ):
            raise Fault(
                "unequal prompts",
                f"{' and '.join(map(repr, shown))} are no answers of the assistant to one and the same "
                "question: a prompt that ends with the user, then the assistant",
            )
        before = [dataclasses.replace(message, trained=False) for message in before]
        for key, rest in zip(shown, rests, strict=True):
            yield check_order([*before, *rest], key)

    def _sides(
        self, answers: Sequence[list[Message] | tuple[str, str]], where: str, account: Account
    ) -> Iterator[Example]:
        """The answers' examples; none once one is too long, and a record cut twice is counted once."""
        cut = account.truncated
        for answer in answers:
            if isinstance(answer, tuple):
                segments = self._segments("completion", {"prompt": answer[0], "completion": answer[1]})
            else:
                segments = self._talk(answer)
            side = self._example(segments, where, account)
            if side is None:
                account.truncated = cut
                return
            account.truncated = min(account.truncated, cut + 1)
            yield side

    def _talk(self, messages: list[Message]) -> list[Segment]:
        try:
            return self.chat.segments(messages)
        except InputError as error:
            raise Fault("refused by the template", str(error).rstrip(".")) from None

    def _pairs(self, sides: Sequence[Example], named: Mapping[str, Any]) -> list[Pair]:
        """What a record's sides make; nothing where one of them is too long."""
        if len(sides) < (1 if "label" in named else 2):
            return []
        if len(sides) == 1:
            return [Pair(sides[0], None, named["label"])]
        if np.array_equal(sides[0].ids, sides[1].ids):
            raise Fault("equal answers", "chosen and rejected are the same tokens, as far as they fit")
        if self.judging:
            return [Pair(side, None, wanted) for side, wanted in zip(sides, (True, False), strict=True)]
        return [Pair(sides[0], sides[1])]


class JudgedReader(PairReader):
    """What KTO learns from."""

    judging = True
