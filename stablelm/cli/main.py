"""The `stablelm` command: collects the verbs, and turns errors into one clear message.

Exit codes: 0 done; 2 the user's mistake (`InputError`, a wrong option, a path that cannot be used); 1 a run
that had to stop, a full disk, a reader of the output that went away, or a bug; 130 Ctrl-C. No traceback
unless `--debug` stands anywhere before `--`. Nothing is imported before `main` runs, so Ctrl-C is never a
traceback, and verbs import what they need when they run, so `--help` does not wait for PyTorch."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

_REMEDIES = {
    errno.ENOENT: "Correct the path, or make the folder first",
    errno.EACCES: "Change its permissions, or choose another path",
    errno.EPERM: "Choose another path",
    errno.EROFS: "Choose another path",
    errno.EEXIST: "It is a file where a folder is needed, or is there already; choose another path",
    errno.ENOTDIR: "A part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "Name a file",
    errno.ENAMETOOLONG: "Choose a shorter one",
    errno.ELOOP: "Links lead in a circle; remove one",
}
"""What the system says of a path that the user chose, and what to do about it."""


def application() -> "typer.Typer":
    """The verbs, and the options that stand before them."""
    import typer

    import stablelm
    from stablelm.cli import data, demo, generate, models, tokenizer, train

    app = typer.Typer(
        name="stablelm",
        help="StableLM-3B-4E1T's system, from raw text to a model that writes. Try: stablelm demo",
        epilog="--debug, anywhere on the line, shows a traceback when something fails.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"stablelm {stablelm.__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ) -> None: ...

    for verb in (
        demo.demo, models.init, train.train, train.report, generate.generate, models.inspect, models.export,
    ):  # fmt: skip
        app.command()(verb)
    app.add_typer(data.app, name="data")
    app.add_typer(tokenizer.app, name="tokenizer")
    return app


def main() -> None:
    """Entry point of the `stablelm` script."""
    arguments = sys.argv[1:]
    own = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:own]
    arguments = [word for word in arguments[:own] if word != "--debug"] + arguments[own:]
    try:
        _prepare_streams()
        code = application()(arguments, prog_name="stablelm", standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if debug and not _is_usage(error):
            raise
        code = _explain(error)
    if code == 130:
        print("stopped", file=sys.stderr)
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C does not spoil the way out
    sys.exit(code or 0)


def _prepare_streams() -> None:
    """UTF-8 whatever the locale says, file names byte for byte, and a closed stream swallows."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _is_usage(error: Any) -> bool:
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _explain(error: Any) -> int:
    """Prints one message for an error and returns the exit code."""
    from stablelm.config.errors import InputError, RunError

    if _is_usage(error):
        where = error.ctx.command_path if getattr(error, "ctx", None) else "stablelm"
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return 2
        message, code = f"{error.format_message().rstrip('.')}. {where} --help shows what is wanted.", 2
    elif isinstance(error, InputError):
        message, code = str(error), 2
    elif isinstance(error, RunError):
        message, code = str(error), 1
    elif isinstance(error, OSError):
        remedy = _REMEDIES.get(error.errno or 0) if error.filename is not None else None
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        message, code = f"{place}{error.strerror or error}.", 1
        if remedy:
            message, code = f"{re.sub(r'[.]tmp-[0-9]+', '', place)}{error.strerror}. {remedy}.", 2
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        message, code = f"out of memory ({error}). Lower batch.micro_sequences, or use a smaller model.", 1
    else:
        message, code = f"{type(error).__name__}: {error}\nThis is a bug; --debug shows where.", 1
    print(f"error: {message}", file=sys.stderr)
    return code
