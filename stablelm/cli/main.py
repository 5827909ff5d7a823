"""The `stablelm` command: collects the verbs, and turns errors into one clear message.

Exit codes: 0 done; 2 the user's mistake (`InputError`, a path that is not there); 1 a run that had to stop, a
full disk, or a bug; 130 Ctrl-C. No traceback unless `--debug` stands anywhere on the line. Verbs import what
they need when they run, so `--help` does not wait for PyTorch."""

import sys

import typer

from stablelm.cli import data, demo, generate, models, tokenizer, train
from stablelm.config.errors import InputError, RunError

app = typer.Typer(
    name="stablelm",
    help="StableLM-3B-4E1T's system, from raw text to a model that writes. Try: stablelm demo",
    epilog="--debug anywhere on the line shows a traceback when something fails.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
app.command()(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.command()(models.init)
app.command()(train.train)
app.command()(train.report)
app.command()(generate.generate)
app.command()(models.inspect)
app.command()(models.export)


def main() -> None:
    """Entry point of the `stablelm` script."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except Exception as error:
        if debug:
            raise
        sys.exit(_explain(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _explain(error: Exception) -> int:
    """Prints one message for an error and returns the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader of a pipe went away, as `| head` does
        sys.stderr.close()
        return 1
    if isinstance(error, InputError):
        message, code = str(error), 2
    elif isinstance(error, RunError):
        message, code = str(error), 1
    elif isinstance(
        error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
    ):
        message, code = f"{error.filename}: {error.strerror}.", 2
    elif isinstance(error, OSError):
        message, code = f"{error.strerror or error}.", 1
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        message, code = f"out of memory ({error}). Lower batch.micro_sequences, or use a smaller model.", 1
    else:
        message, code = f"{type(error).__name__}: {error}\nThis is a bug; --debug shows where.", 1
    print(f"error: {message}", file=sys.stderr)
    return code
