"""`stablelm chat`: a conversation in the terminal; only the answers go to standard output.

Lines come from the terminal or a pipe, one message each. The tokenizer's chat template makes the text; a
model without one continues what was written so far, and that is said. Ctrl-C ends an answer, which stays in
the conversation as far as it came. What was read for an answer is kept, and compared id by id with the next
text: only what is new is read."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stablelm.tokenizer import Tokenizer

COMMANDS = "/reset starts anew, /exit or the end of the input ends, Ctrl-C ends an answer"


@dataclass
class Conversation:
    """What was said, and the text that the model reads."""

    tokenizer: "Tokenizer"
    bos_id: int
    system: str | None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def say(self, role: str, content: str) -> None:
        """Adds a message."""
        self.messages.append({"role": role, "content": content})

    def text(self) -> str:
        """The conversation up to where the answer begins; without a template, each answer ends a line."""
        template = self.tokenizer.chat_template
        if template is None:
            return "".join(m["content"] + "\n" * (m["role"] != "user") for m in self.messages)
        from stablelm.tokenizer.chat import render

        eos, bos = (
            self.tokenizer.id_to_token(number) or "" for number in (self.tokenizer.eos_id, self.bos_id)
        )
        return render(template, self.messages, eos_token=eos, bos_token=bos)


def chat(
    model: Annotated[str, typer.Argument(help="A model in any form that opens (also a Hub id).")],
    system: Annotated[str | None, typer.Option(help="A system message, if the template has them.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.75,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that sum to this.")] = 0.95,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 means all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids what is there already.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Answer n draws with SEED + n.", show_default="random")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="An adapter in PEFT's format, or a run that trained one.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Talk with MODEL through its tokenizer's chat template; a base model continues the text instead.

    Each line is a message; /reset starts anew, /exit ends; Ctrl-C ends an answer. From a pipe, the exit code
    is 2 when a message got no answer.

    Example: stablelm chat models/stablelm-zephyr-3b --system "Answer in one sentence."
    """
    import secrets
    from dataclasses import replace

    from stablelm.auto import load
    from stablelm.config import InputError
    from stablelm.inference import PrefixCache, Sampling, StopMatcher, stream
    from stablelm.planning import resolve_device

    first = secrets.randbelow(2**31) if seed is None else seed
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, first)
    StopMatcher(stop or ())  # refused before the weights are read
    network, tokenizer = load(model, device=resolve_device(device), adapters=adapter or ())
    context = network.config.max_position_embeddings
    read_before = PrefixCache(network)
    talk = Conversation(tokenizer, network.config.bos_token_id, system)
    if tokenizer.chat_template is None:
        if system is not None:
            raise InputError(f"{model}: has no chat template, so there is no place for --system.")
        _tell(
            f"{model} has no chat template: plain completion, your lines and their continuations are one text"
        )
    else:
        talk.say("user", "?")
        talk.text()  # a template that is wrong, or has no system role, is refused now
        talk.reset()
    _tell(COMMANDS)
    answers = refused = 0
    for line in _lines():
        if line.strip() == "/exit":
            break
        if line.strip() == "/reset":
            talk.reset()
            _tell("a new conversation")
            continue
        if not line.strip():
            continue
        if line.startswith("/"):
            _tell(f"{line.split()[0]} is no command; {COMMANDS}. A space before it makes it a message")
            refused += 1
            continue
        talk.say("user", line)
        prompt = talk.text()
        length = len(tokenizer.encode(prompt))
        room, drawn = context - length, list[int]()
        if room < 1:
            talk.messages.pop()
            refused += 1
            _tell(
                f"no room for an answer: with this message the conversation has {length:,} tokens, the "
                f"model's context is {context:,}. The message was dropped; shorten it, or /reset starts anew"
            )
            continue
        pieces = stream(
            network, tokenizer, prompt, max_new_tokens=min(max_new_tokens, room),
            sampling=replace(sampling, seed=first + answers), stop=stop or (), on_token=drawn.append,
            prefix=read_before,
        )  # fmt: skip
        talk.say("assistant", _show(pieces))
        answers += 1
        ended = drawn and drawn[-1] in (tokenizer.eos_id, network.config.eos_token_id)
        if len(drawn) == room < max_new_tokens and not ended:
            _tell(
                f"the answer was cut after {room:,} tokens: with the {length:,} before them the model's "
                f"context of {context:,} is full. /reset starts anew"
            )
    if refused and not sys.stdin.isatty():
        raise typer.Exit(2)


def _show(pieces: Iterator[str]) -> str:
    """Writes an answer as it comes; Ctrl-C ends it. → what was written, without the line end."""
    written: list[str] = []
    try:
        for piece in pieces:
            typer.echo(piece, nl=False)
            written.append(piece)
    except KeyboardInterrupt:
        _tell("\nstopped" if sys.stderr.isatty() else "stopped")
    typer.echo()
    return "".join(written)


def _tell(message: str) -> None:
    typer.echo(message, err=True)


def _lines() -> Iterator[str]:
    """Messages without their line ends. In a terminal with line editing; else UTF-8 whatever the locale
    says."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` editing and history)
        yield from _typed(input)
        return
    from stablelm.config import InputError

    for number, data in enumerate(sys.stdin.buffer, 1):
        try:
            yield data.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number:,} of the input, byte {error.start + 1:,}: not UTF-8. Convert it with iconv."
            ) from None


def _typed(read: Callable[[str], str]) -> Iterator[str]:
    """Lines of a terminal; Ctrl-C drops the line begun, Ctrl-D ends."""
    while True:
        try:
            yield os.fsencode(read("> ")).decode(errors="replace")
        except KeyboardInterrupt:
            _tell(f"\n{COMMANDS}")
        except EOFError:
            typer.echo()
            return
