"""The `lookalike` command: its subcommands, error messages and exit codes."""

from __future__ import annotations

import atexit
import errno
import io
import itertools
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from lookalike import __version__
from lookalike.cli.console import echo, shown
from lookalike.cli.data import app as data
from lookalike.cli.demo import demo
from lookalike.cli.embed import embed
from lookalike.cli.evaluate import evaluate
from lookalike.cli.export import export
from lookalike.cli.fit import fit
from lookalike.cli.gallery import app as gallery
from lookalike.cli.models import app as models
from lookalike.cli.models import recipes
from lookalike.cli.predict import predict
from lookalike.cli.reproduce import reproduce
from lookalike.cli.serve import serve
from lookalike.cli.train import train
from lookalike.errors import InputError, LookalikeError, without_passwords
from lookalike.hardware import set_short_waits

OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "out of memory")  # in messages of PyTorch


class _Group(TyperGroup):
    """The subcommands. Usage errors are printed without passwords and control characters."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _redacted_errors():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _redacted_errors():
            return super().invoke(ctx)


@contextmanager
def _redacted_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "message"):  # of click, or of typer's copy of it
            error.message = shown(without_passwords(error.message))
        raise


MAY_BE_EMPTY = ("--label",)  # options that take an empty value
FILE_REMEDIES = {  # errors of the file system, and what to do about them
    errno.EACCES: "Check the permissions of this file or folder and of those above it.",
    errno.EPERM: "Check the permissions of this file or folder and of those above it.",
    errno.ELOOP: "Correct the symbolic links on this path: they form a loop.",
}
STOPPED = (130, 143)  # exit codes after Ctrl-C and SIGTERM

app = typer.Typer(
    name="lookalike",
    cls=_Group,
    help="Train image recognition, measure it, and search images by what they look like.",
    epilog="New here? Run 'lookalike demo': it needs no data and takes five to twenty minutes on two cores.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # see `run`
)
app.command("demo")(demo)
app.add_typer(data, name="data")
app.command("recipes")(recipes)
app.add_typer(models, name="models")
app.command("fit")(fit)
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("predict")(predict)
app.command("embed")(embed)
app.command("export")(export)
app.add_typer(gallery, name="gallery")
app.command("serve")(serve)
app.command("reproduce")(reproduce)


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"lookalike {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line and exit; this is the console script.

    Exit codes: 0 success, 1 failure, 2 bad input, 130 Ctrl-C, 143 SIGTERM. A `LookalikeError` is printed on stderr as
    `error: ...` with its remedy on the next line; any other exception is a bug and keeps its traceback.

    A process that was stopped, or was started by torchrun, exits without the interpreter's shutdown: threads of
    libraries (gloo, ONNX export) may still run then, and would abort the process with another exit code.
    """
    try:
        _run()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if code not in STOPPED and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        _leave(code)


def _run() -> None:
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata; an image is decoded whole or refused
    set_short_waits()  # before anything loads PyTorch
    signal.signal(signal.SIGTERM, _terminated)
    sys.excepthook = _show_bug
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that it cannot encode must not end the command
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            _check_not_empty(sys.argv)
            app()
        finally:
            sys.stdout.flush()  # raises BrokenPipeError here (`| head`) and not at interpreter exit
    except LookalikeError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        _fail(InputError("not enough memory.", "Use a smaller batch_size or image_size, or a machine with more."))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in {errno.EIO, errno.EROFS, errno.ESTALE}:
            _drop_output()
            _fail(InputError(f"{where}the disk failed ({error.strerror}).", "Check the disk, then run this again."))
        if error.errno == errno.ENAMETOOLONG:
            name = str(error.filename or "a path")
            what = f"{name[:100]}…: this path of {len(name):,} characters is too long."
            _fail(InputError(what, "Use a shorter path."))
        if error.errno in FILE_REMEDIES and error.filename:
            _fail(InputError(f"{error.filename}: {error.strerror}.", FILE_REMEDIES[error.errno]))
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        _drop_output()
        _fail(InputError(f"{where}no space left on the disk.", "Free some space, or choose another folder."))


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug without passwords."""
    import traceback

    echo(without_passwords("".join(traceback.format_exception(kind, error, trace))), err=True, end="")


def _check_not_empty(words: Sequence[str]) -> None:
    """Check that no argument is empty, which as a path would mean the current folder.

    Raises:
        InputError: one is; it names the argument before it.
    """
    for before, word in itertools.pairwise(words):
        if word == "" and before not in MAY_BE_EMPTY:
            raise InputError(
                f"the argument after '{Path(before).name}' is empty.",
                "Give a value ('.' for the current folder); perhaps a shell variable is not set.",
            )


def _leave(code: int) -> NoReturn:
    """Exit at once after Python's exit functions; further signals are ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _drop_output() -> None:
    """Discard what is buffered for stdout, which the interpreter would try to write again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: LookalikeError) -> NoReturn:
    echo(f"error: {error.message}", err=True)
    if error.remedy:
        echo(f"  {error.remedy}", err=True)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
