"""Records to examples: token ids, and which of them the model is to write.

    text          <|endoftext|> text <|endoftext|>        all but the first token is trained
    completion    prompt completion <|endoftext|>         the completion and the separator are trained
    chat, alpaca  the chat template's text                the answers and the separators after them

Prompt and completion are encoded each for itself, because that is how they meet when the model is used: the
prompt's ids are fixed before the first token of the completion is drawn. A completion without a prompt
begins, like a text, behind a separator. A text may be rearranged for filling in between its separators
(`tokenizer/infilling.py`); what is drawn is a hash of the text. Alpaca's instruction and input, a blank line
between them, are the user's message.

An example holds its ids as a sample does: v is trained, ~v (negative) is read only. All are held in memory,
8 bytes a token with the rows made of them. The texts of 512 records are encoded in one call."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.finetune import ExamplesConfig
from stablelm.data.documents import kind_of
from stablelm.finetuning.conversations import (
    ChatEncoder,
    Encode,
    Fault,
    Later,
    Message,
    Segment,
    check_order,
    checked_text,
    messages_of,
)
from stablelm.finetuning.records import read_records
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.infilling import Infilling

SHAPES = {
    "chat": (("messages",), ("conversations",)),
    "completion": (("prompt", "completion"),),
    "alpaca": (("instruction", "output"),),
    "text": (("text",),),
}
"""Format → the keys of ours that a record must have, one group of them; asked in this order."""
CHATS = ("chat", "alpaca")
"""Formats that a chat template writes."""
TOGETHER = 512
"""Records whose texts are encoded in one call, on all cores."""
_OPTIONAL = {"alpaca": ("input", "system")}
_SHOWN = "text; prompt and completion; messages or conversations; instruction and output"


@dataclass(frozen=True, slots=True)
class Example:
    """One text, answer or conversation."""

    ids: NDArray[np.int32]
    """[tokens]; a negative entry v is the id ~v, read but not trained; the first always is."""
    text_bytes: int
    """UTF-8 bytes of what is trained."""
    where: str
    """File and line."""

    @property
    def trained(self) -> int:
        """Tokens that are trained."""
        return int((self.ids >= 0).sum())


@dataclass
class Account:
    """What became of the records of some files."""

    format: str = ""
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason: records that are no examples, or too long."""
    truncated: int = 0
    """Kept without their end."""
    rearranged: int = 0
    """For filling in."""
    unread: Counter[str] = field(default_factory=Counter)
    """Keys that say nothing here → records that have them."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": self.format, "read": self.read, "kept": self.kept, "dropped": dict(self.dropped),
            "truncated": self.truncated, "unread_keys": dict(self.unread),
        }  # fmt: skip


class ExampleReader:
    """Examples out of files, by one tokenizer and template."""

    def __init__(
        self,
        data: ExamplesConfig,
        tokenizer: Tokenizer,
        chat: ChatEncoder,
        longest: int,
        infilling: Infilling | None = None,
    ) -> None:
        """`longest`: tokens of an example at most; `infilling` rearranges texts."""
        self.infilling = infilling
        self.data, self.tokenizer, self.chat, self.longest = data, tokenizer, chat, longest
        self.encode: Encode = tokenizer.encode_documents
        self._prefix = tokenizer.encode("")  # what this tokenizer puts before a prompt; nothing for NeoX

    def read(self, paths: Sequence[str], account: Account) -> list[Example]:
        """All examples of some files, in their order; `InputError` names file, line and key of the first
        that is none, or with on_error skip only counts it."""
        records = (record for path in paths for record in read_records(path, self.data))
        found = list(self._examples(records, account))
        if not found:
            lost = ", ".join(f"{reason} {count:,}" for reason, count in account.dropped.items())
            raise InputError(
                f"{', '.join(paths)}: no example in {account.read:,} records{f' ({lost})' if lost else ''}. "
                "Give records with something to learn."
            )
        return found

    def _examples(self, records: Iterable[tuple[str, Any]], account: Account) -> Iterator[Example]:
        wanted: list[str] = []  # keys as the records call them
        later, held = Later(self.tokenizer.encode_documents), list[tuple[list[Segment], str]]()
        self.encode = self.chat.encode = later
        for where, record in records:
            account.read += 1
            try:
                if not isinstance(record, Mapping):
                    raise Fault("wrong type", f"{kind_of(record)}; wanted is an object")
                if not account.format:
                    account.format = self._shape(record)
                    if self.infilling is not None and account.format != "text":
                        raise InputError(
                            f"{where}: data.fim rearranges texts; this is an example of format "
                            f"{account.format}. Leave fim out."
                        )
                    if account.format in CHATS:
                        self.chat.check()
                named = self._fields(record, account.format)
                wanted = list(named)
                segments = self._segments(account.format, named)
                if self.infilling is not None:
                    segments = self._rearranged(str(next(iter(named.values()))), segments, account)
            except Fault as fault:
                if self.data.on_error == "stop":
                    list(self._finished(later, held, account))  # what is wrong before it is told first
                self._left_out(fault, where, account)
                continue
            account.unread.update(str(key) for key in record if key not in wanted)
            held.append((segments, where))
            if len(held) == TOGETHER:
                yield from self._finished(later, held, account)
        yield from self._finished(later, held, account)
        self.encode = self.chat.encode = self.tokenizer.encode_documents

    def _finished(
        self, later: Later, held: list[tuple[list[Segment], str]], account: Account
    ) -> Iterator[Example]:
        """The examples that are held back, which are then none."""
        later.fill()
        for segments, where in held:
            if (example := self._example(segments, where, account)) is not None:
                account.kept += 1
                yield example
        held.clear()

    def _left_out(self, fault: Fault, where: str, account: Account) -> None:
        """Counts a record that is no example, or with on_error stop raises what is wrong with it."""
        if self.data.on_error == "stop":
            raise InputError(
                f"{where}: {fault.what}. Repair or remove it, or count and skip such records "
                "(data.on_error: skip)."
            ) from None
        account.dropped[fault.reason] += 1

    def _theirs(self, name: str) -> str:
        return self.data.keys.get(name, name)

    def _shape(self, record: Mapping[str, Any]) -> str:
        """The format of a record."""
        asked = self.data.format
        for name, groups in SHAPES.items():
            if asked in ("auto", name):
                for group in groups:
                    if all(self._theirs(key) in record for key in group):
                        return name
        there = ", ".join(map(repr, record)) or "none"
        shapes = _SHOWN if asked == "auto" else " or ".join(" and ".join(group) for group in SHAPES[asked])
        raise Fault(
            "missing key",
            f"the keys {there} fit no shape of examples: {shapes}. Name them, as --set "
            "'data.keys={prompt: question, completion: answer}'"
            + (
                ", or learn what is preferred: --preference dpo"
                if {"chosen", "rejected"} <= set(record)
                else ""
            ),
        )

    def _fields(self, record: Mapping[str, Any], shape: str) -> dict[str, Any]:
        """Their key → value of what the format reads, required keys first."""
        groups = [tuple(map(self._theirs, group)) for group in SHAPES[shape]]
        for group in groups:
            if all(key in record for key in group):
                optional = [self._theirs(key) for key in _OPTIONAL.get(shape, ())]
                return {key: record[key] for key in (*group, *optional) if key in record}
        missing = next(key for key in groups[0] if key not in record)
        there = ", ".join(map(repr, record)) or "none"
        raise Fault("missing key", f"the key {missing!r} is missing (there: {there})")

    def _segments(self, shape: str, named: Mapping[str, Any]) -> list[Segment]:
        keys = list(named)
        if shape == "text":
            text = self._written(named[keys[0]], keys[0], "the text")
            return [self._separator(False), *self._encoded(text, True), self._separator(True)]
        if shape == "completion":
            prompt = checked_text(named[keys[0]], repr(keys[0]))
            answer = self._written(named[keys[1]], keys[1], "the answer")
            asked = [Segment(self._prefix, False, 0), *self._encoded(prompt, False)]
            before = asked if prompt or self._prefix else [self._separator(False)]
            return [*before, *self._encoded(answer, True), self._separator(True)]
        talk = messages_of(named[keys[0]], keys[0]) if shape == "chat" else self._alpaca(named)
        try:
            return self.chat.segments(talk)
        except InputError as error:
            raise Fault("refused by the template", str(error).rstrip(".")) from None

    def _rearranged(self, text: str, whole: list[Segment], account: Account) -> list[Segment]:
        """The segments of a text that is to be filled in, or `whole`."""
        assert self.infilling is not None
        parts = self.infilling.parts(text, text)
        if len(parts) == 1:
            return whole
        account.rearranged += 1
        ids = [np.array(part, dtype=np.int64) for part in self.tokenizer.encode_documents(parts)]
        arranged = self.infilling.arranged(ids, text).tolist()
        return [whole[0], Segment(arranged, True, len(text.encode())), whole[-1]]

    def _alpaca(self, named: Mapping[str, Any]) -> list[Message]:
        said = {
            name: checked_text(named[key], repr(key))
            for name in ("instruction", "input", "output", "system")
            if (key := self._theirs(name)) in named and named[key] is not None
        }
        for name in ("instruction", "output"):
            if name not in said:
                raise Fault("wrong type", f"{self._theirs(name)!r} is null, not a string")
        asked = "\n\n".join(filter(None, (said["instruction"], said.get("input", ""))))
        first = [Message("system", said["system"])] if said.get("system") else []
        talk = [*first, Message("user", asked), Message("assistant", said["output"], True)]
        if not said["output"].strip():
            raise Fault("empty answer", f"{self._theirs('output')!r}: the answer has no text")
        return check_order(talk, self._theirs("output"))

    def _written(self, value: Any, key: str, what: str) -> str:
        text = checked_text(value, repr(key))
        if not text.strip():
            raise Fault(f"empty {what.split()[-1]}", f"{key!r}: {what} has no text")
        return text

    def _encoded(self, text: str, trained: bool) -> list[Segment]:
        ids = self.encode([text])[0] if text else []
        return [Segment(ids, trained, len(text.encode()))]

    def _separator(self, trained: bool) -> Segment:
        return Segment([self.tokenizer.eos_id], trained, 0)

    def _example(self, segments: Sequence[Segment], where: str, account: Account) -> Example | None:
        every = self.data.train_on == "all"
        parts = [
            np.array(part.ids, dtype=np.int32)
            if every or part.trained
            else ~np.array(part.ids, dtype=np.int32)
            for part in segments
        ]
        ids = np.concatenate(parts)
        if ids[0] >= 0:
            ids[0] = ~ids[0]  # nothing comes before it that could predict it
        size = sum(part.text_bytes for part in segments if every or part.trained)
        if len(ids) > self.longest:
            if self.data.too_long == "refuse":
                raise InputError(
                    f"{where}: {len(ids):,} tokens; the longest that fits rows of {self.longest - 1:,} has "
                    f"{self.longest:,}. Give longer rows (--sequence-length, up to the model's context), or "
                    "say what becomes of such examples: --set data.too_long=drop, or truncate."
                )
            whole = int((ids >= 0).sum())
            ids = ids[: self.longest]
            left = int((ids >= 0).sum())
            if self.data.too_long == "drop" or not left:
                account.dropped["too long"] += 1
                return None
            account.truncated += 1
            size = round(size * left / whole)
        return Example(ids, size, where)
