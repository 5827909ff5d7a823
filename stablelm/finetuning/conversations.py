"""Conversations: the shapes they come in, and which of their tokens the model is to write.

A chat template is a program, so nothing in its output says whose text a character is. It is rendered once
for each order of roles with a mark in place of every message; what stands between the marks is the
template's, what stands at them the message's. The result is held against the rendering of the real messages,
and a template that changes what a message says (but for the spaces at its ends) is refused.

Where tokens are cut: before an answer, where generation begins, and around special tokens. Everything else
between two such places is encoded as one text, so a prompt has the ids that `stablelm chat` would give it,
and an answer those of its own text, which no merge ties to what was asked. Special tokens count only where
the template writes them: <|endoftext|> inside a message is seven ordinary tokens.

Trained are the tokens of each answer and the separator after it. What the template puts behind the last
separator is left out: nothing would learn from it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stablelm.config import InputError
from stablelm.data.documents import kind_of
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.chat import render

_OPEN, _CLOSE = "\ue000", "\ue001"  # private characters, around a message's number
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_NAMES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
}  # fmt: skip
_LOST = ("tool_calls", "function_call", "images", "audio")  # of a message: more than its text says


class Fault(Exception):
    """A record that is no example: a reason to count it by, and what to tell."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason, self.what = reason, what


@dataclass(frozen=True)
class Message:
    """What one side says."""

    role: str
    """system, user or assistant."""
    content: str
    trained: bool = False
    """An answer that the model is to learn."""


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens of an example, encoded together."""

    ids: list[int]
    trained: bool
    text_bytes: int
    """UTF-8 bytes of its text; 0 for a special token."""


def messages_of(value: Any, key: str) -> list[Message]:
    """The messages of an OpenAI ({role, content}) or ShareGPT ({from, value}) list; `Fault` for another
    shape, an unknown role, roles out of order, or an answer without text."""
    return check_order(said(value, key), key)


def said(value: Any, key: str) -> list[Message]:
    """The messages of a list, in whatever order of roles; `Fault` for another shape or an unknown role."""
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else kind_of(value)
        raise Fault("wrong type", f"{key!r} is {what}; wanted is a list of messages")
    return [_message(item, f"{key}[{number}]") for number, item in enumerate(value)]


def check_order(messages: list[Message], key: str) -> list[Message]:
    """The same messages, if they are a system message or none, and then questions and answers in turn."""
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns):
        wanted = "assistant" if number % 2 else "user"
        if message.role != wanted:
            place = number + len(messages) - len(turns)
            raise Fault(
                "roles out of order",
                f"{key}[{place}] is of the {message.role}, where the {wanted} should speak: one system "
                "message at most, at the beginning, then user and assistant in turn",
            )
    if len(turns) % 2 or not turns:
        raise Fault("no answer at the end", f"{key} ends without an answer of the assistant")
    for number, message in enumerate(messages):
        if message.role == "assistant" and not message.content.strip():
            raise Fault("empty answer", f"{key}[{number}]: the answer has no text")
    if not any(message.trained for message in messages):
        raise Fault("nothing to learn", f"{key}: every answer has weight 0")
    return messages


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise Fault("wrong type", f"{where} is {kind_of(item)}; wanted is an object with role and content")
    names = ("role", "content") if "role" in item else ("from", "value")
    if not set(names) <= set(item):
        there = ", ".join(map(repr, item)) or "none"
        raise Fault("missing key", f"{where} lacks role and content, or from and value (there: {there})")
    role, content = (item[name] for name in names)
    if role not in _NAMES:
        known = "system, user (human), assistant (gpt)"
        raise Fault("unknown role", f"{where}: the role is {role!r}; known are {known}")
    if lost := [name for name in _LOST if item.get(name)]:
        raise Fault("more than text", f"{where} has {lost[0]!r}, which cannot be learnt from yet")
    weight = item.get("weight")
    if weight not in (None, 0, 1):
        raise Fault("wrong type", f"{where}.weight is {weight!r}; 1 trains an answer, 0 does not")
    role = _NAMES[role]
    return Message(role, _text(content, f"{where}.{names[1]}"), role == "assistant" and weight != 0)


def _text(content: Any, where: str) -> str:
    """A string, or OpenAI's list of text parts."""
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    return checked_text(content, where)


def checked_text(value: Any, where: str) -> str:
    """A string that UTF-8 can hold; `Fault` for anything else."""
    if not isinstance(value, str):
        raise Fault("wrong type", f"{where} is {kind_of(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Fault(
            "lone surrogate", f"{where}: character {error.start + 1:,} is half a surrogate pair"
        ) from None
    return value


Encode = Callable[[Sequence[str]], list[list[int]]]


class Later:
    """Encodes the texts of many records at once: a call gives empty lists of ids, `fill` fills them all."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._texts: list[str] = []
        self._ids: list[list[int]] = []

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """A list for each text, to be filled."""
        given: list[list[int]] = [[] for _ in texts]
        self._texts += texts
        self._ids += given
        return given

    def fill(self) -> None:
        """Puts the ids into every list that was given since the last time."""
        for given, ids in zip(self._ids, self._encode(self._texts), strict=True):
            given.extend(ids)
        self._texts, self._ids = [], []


class ChatEncoder:
    """Conversations to segments, by one template and tokenizer."""

    def __init__(self, tokenizer: Tokenizer, template: str, bos_id: int) -> None:
        """`bos_id`: the model's, for templates that write it."""
        self.tokenizer, self.template, self.eos_id = tokenizer, template, tokenizer.eos_id
        self.encode: Encode = tokenizer.encode_documents
        self.eos, self.bos = (tokenizer.id_to_token(i) or "" for i in (tokenizer.eos_id, bos_id))
        spelled = {tokenizer.id_to_token(number) or "": number for number in tokenizer.special_ids}
        self._special = {text: number for text, number in spelled.items() if text}
        names = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        prefix = tokenizer.encode("")  # what this tokenizer puts before every prompt; nothing for NeoX
        self._first = [Segment(prefix, False, 0)] if prefix else []
        self._literals = lru_cache(maxsize=1024)(self._between)

    def check(self) -> None:
        """`InputError` for a template that is wrong, or does not end answers with the tokenizer's
        separator."""
        self._literals(("user", "assistant"))

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The conversation up to the end of its last answer; neighbours may both be trained or not.

        `InputError` where the template does not say the messages as they are."""
        literals = self._literals(tuple(message.role for message in messages))
        contents = self._as_said(messages, literals)
        pieces: list[tuple[str, bool, bool]] = [(literals[0], False, True)]  # text, trained, of the template
        for message, content, after in zip(messages, contents, literals[1:], strict=True):
            pieces.append((content, message.trained, False))
            if message.role == "assistant":
                before, _, after = after.partition(self.eos)
                pieces += [(before, message.trained, True), (self.eos, message.trained, True)]
            pieces.append((after, False, True))
        return [*self._first, *self._encoded(pieces[:-1])]  # without what follows the last answer

    def _encoded(self, pieces: Sequence[tuple[str, bool, bool]]) -> Iterator[Segment]:
        """Runs of one kind, each encoded whole."""
        texts: list[str] = []
        runs: list[tuple[int, bool]] = []  # special id or −1, trained

        def add(text: str, trained: bool) -> None:
            if text and runs and runs[-1] == (-1, trained):
                texts[-1] += text
            elif text:
                texts.append(text)
                runs.append((-1, trained))

        for text, trained, own in pieces:
            done = 0
            for found in self._cut.finditer(text) if own else ():
                add(text[done : found.start()], trained)
                runs.append((self._special[found[0]], trained))
                done = found.end()
            add(text[done:], trained)
        encoded = iter(zip(texts, self.encode(texts), strict=True))
        for number, trained in runs:
            if number >= 0:
                yield Segment([number], trained, 0)
            else:
                text, ids = next(encoded)
                yield Segment(ids, trained, len(text.encode()))

    def _render(self, messages: Sequence[tuple[str, str]], generation: bool = False) -> str:
        said = [{"role": role, "content": content} for role, content in messages]
        options: dict[str, Any] = {"add_generation_prompt": generation}
        return render(self.template, said, eos_token=self.eos, bos_token=self.bos, **options)

    def _between(self, roles: tuple[str, ...]) -> list[str]:
        """The template's own text before, between and behind the messages, [messages + 1]."""
        marks = [(role, f"{_OPEN}{number}{_CLOSE}") for number, role in enumerate(roles)]
        text = self._render(marks)
        parts = _MARK.split(text)
        if parts[1::2] != [str(number) for number in range(len(roles))]:
            raise InputError(
                f"the chat template does not say the messages of {', '.join(roles)} once each and in order, "
                "so their tokens cannot be told apart. Choose another template (data.template: zephyr), or "
                "other messages."
            )
        literals = parts[::2]
        for number, role in enumerate(roles):
            if role != "assistant":
                continue
            if self.eos not in literals[number + 1]:
                raise InputError(
                    f"the chat template does not put {self.eos!r}, the tokenizer's end of a text, after an "
                    "answer, so the tuned model would never stop. Correct the template, name its terminator "
                    "as eos_token in tokenizer_config.json, or use data.template: zephyr."
                )
            asked = self._render(marks[:number], generation=True)
            if asked != text[: text.index(marks[number][1])]:
                raise InputError(
                    "the chat template asks for an answer in other words than it writes before one "
                    f"({asked[-40:]!r}), so what is learnt would not be what is asked. Use another template, "
                    "for example data.template: zephyr."
                )
        return literals

    def _as_said(self, messages: Sequence[Message], literals: Sequence[str]) -> list[str]:
        """The messages as the template says them: as they are, or without spaces at their ends."""
        real = self._render([(message.role, message.content) for message in messages])
        for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
            parts = [literals[0]]
            for content, after in zip(contents, literals[1:], strict=True):
                parts += [content, after]
            if "".join(parts) == real:
                return contents
        raise Fault(
            "changed by the template",
            "the chat template does not say these messages as they are; which tokens are an answer's cannot "
            "be told",
        )
