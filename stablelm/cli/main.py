"""The `stablelm` command: collects the verbs, and turns errors into one clear message.

Exit codes: 0 done; 2 the user's mistake (`InputError`, a wrong option, a path that cannot be used); 1 a run
that had to stop, a full disk, a reader of the output that went away, or a bug; 130 Ctrl-C. No traceback
unless `--debug` stands anywhere before `--`. Nothing is imported before `main` runs, so Ctrl-C is never a
traceback, and verbs import what they need when they run, so `--help` does not wait for PyTorch."""

import errno
import io
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import stablelm

if TYPE_CHECKING:
    import typer

_WRONG_PATHS = {
    errno.ENOENT: "Correct the path",
    errno.EACCES: "Change its permissions, or choose another path",
    errno.EISDIR: "Name a file",
    **dict.fromkeys((errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR), "Choose another path"),
}
"""What the system says of a path that the user chose → what to do about it."""


def application() -> "typer.Typer":
    """The verbs."""
    import typer

    from stablelm.cli import (
        adapter,
        benchmark,
        chat,
        checkpoint,
        config,
        data,
        demo,
        evaluate,
        finetune,
        generate,
        launch,
        models,
        perplexity,
        plan,
        quantize,
        tokenizer,
        train,
        watch,
    )  # fmt: skip

    app = typer.Typer(
        name="stablelm",
        help="StableLM-3B-4E1T's system, from raw text to a model that writes. Try: stablelm demo",
        epilog="stablelm --version shows the version. --debug, anywhere on the line, shows a traceback when "
        "something fails.",
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    )  # fmt: skip

    verbs = (
        demo.demo, models.init, plan.plan, train.train, train.report, watch.watch, finetune.finetune,
        generate.generate, chat.chat,
        perplexity.perplexity, evaluate.evaluate, models.inspect, models.convert, models.export,
        quantize.quantize, benchmark.benchmark,
    )  # fmt: skip
    for verb in verbs:
        app.command()(verb)
    app.add_typer(adapter.app, name="adapter")
    app.add_typer(checkpoint.app, name="checkpoint")
    app.add_typer(config.app, name="config")
    app.add_typer(data.app, name="data")
    app.add_typer(launch.app, name="launch")
    app.add_typer(tokenizer.app, name="tokenizer")
    return app


def main() -> None:
    """Entry point of the `stablelm` script."""
    arguments = sys.argv[1:]
    own = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:own]
    try:
        code = _run([word for word in arguments[:own] if word != "--debug"] + arguments[own:], debug)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        _prepare_streams()
        if arguments == ["--version"]:
            print(f"stablelm {stablelm.__version__}")
            return 0
        if (code := application()(arguments, prog_name="stablelm", standalone_mode=False)) == 130:
            raise KeyboardInterrupt  # Typer has caught it
        return code or 0
    except Exception as error:
        if debug and not hasattr(error, "format_message"):  # which Typer's errors have
            raise
        return _explain(error)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C does not spoil the way out


def _prepare_streams() -> None:
    """UTF-8 whatever the locale says, file names byte for byte; one that is closed is an empty file."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open to the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _explain(error: Any) -> int:
    """Prints one message for an error and returns the exit code."""
    from stablelm.config.errors import InputError, RunError

    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stdout.write(error.format_message())  # empty when Rich has shown it already
        return 2
    if hasattr(error, "format_message"):
        where = error.ctx.command_path if getattr(error, "ctx", None) else "stablelm"
        message, code = f"{error.format_message().rstrip('.')}. {where} --help shows what is wanted.", 2
    elif isinstance(error, InputError | RunError):
        message, code = str(error), 2 if isinstance(error, InputError) else 1
    elif isinstance(error, OSError):
        where = f"{re.sub(r'[.]tmp-[0-9]+', '', str(error.filename))}: " if error.filename else ""
        remedy = _WRONG_PATHS.get(error.errno or 0) if where else None
        message, code = f"{where}{error.strerror or error}.", 1
        if remedy:
            message, code = f"{message} {remedy}.", 2
    elif isinstance(error, MemoryError) or re.search("OutOfMemory|t allocate memory", repr(error)):
        message, code = f"out of memory ({error}). Lower batch.micro_sequences, or use a smaller model.", 1
    else:
        message, code = f"{type(error).__name__}: {error}\nThis is a bug; --debug shows where.", 1
    print(f"error: {message}", file=sys.stderr)
    return code
