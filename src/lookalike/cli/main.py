"""The `lookalike` command: its verbs, and what a person sees when something goes wrong."""

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
from lookalike.cli.gallery import app as gallery
from lookalike.cli.models import models, recipes
from lookalike.cli.predict import predict
from lookalike.cli.reproduce import reproduce
from lookalike.cli.serve import serve
from lookalike.cli.train import train
from lookalike.errors import InputError, LookalikeError, without_passwords
from lookalike.hardware import set_short_waits

NO_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "out of memory")  # what PyTorch's errors hold


class _Group(TyperGroup):
    """The commands. What is wrong with a command line is said without the passwords and control characters in it."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _covering():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _covering():
            return super().invoke(ctx)


@contextmanager
def _covering() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "message"):  # click's, or of the copy in typer
            error.message = shown(without_passwords(error.message))
        raise


MAY_BE_EMPTY = ("--label",)  # options whose value may be an empty text
REFUSALS = {  # what a file system may say of any file at any moment, and what to do about it
    errno.EACCES: "Check the rights of this file or folder and of those above it.",
    errno.EPERM: "Check the rights of this file or folder and of those above it.",
    errno.ELOOP: "Mend the symbolic links on this path: they lead in a circle.",
}
STOPPED = (130, 143)  # exit codes: by Ctrl-C, by SIGTERM

app = typer.Typer(
    name="lookalike",
    cls=_Group,
    help="Train image recognition from scratch, measure it honestly, and use it.",
    epilog="New here? Try 'lookalike demo': no data needed, a few minutes on two cores.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a bug keeps its plain traceback; a user's mistake has none (see `run`)
)
app.command("demo")(demo)
app.add_typer(data, name="data")
app.command("recipes")(recipes)
app.command("models")(models)
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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """The console script: run the command line and leave with the exit code that fits.

    0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C, 143 stopped by SIGTERM. An error that a person can cause is
    printed on stderr as `error: ...` with its remedy below; any other exception is a bug and keeps its traceback.

    A process that was stopped, or is one of torchrun's, leaves without the interpreter's tidying up: threads of
    libraries (of gloo, or of what writes an ONNX file) outlive what they worked for, and one that asks for the
    interpreter while it closes, or is still there when the library does, aborts the process, whatever its exit code.
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
        if isinstance(stream, io.TextIOWrapper):  # a character that it cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            _refuse_empty(sys.argv)
            app()
        finally:
            sys.stdout.flush()  # a reader that went away (`| head`) shows here, not as noise at interpreter exit
    except LookalikeError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        _fail(InputError("not enough memory.", "Use a smaller batch_size or image_size, or a machine with more."))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in {errno.EIO, errno.EROFS, errno.ESTALE}:
            _drop_output()
            _fail(InputError(f"{where}the disk failed ({error.strerror}).", "Look at the disk, then run this again."))
        if error.errno == errno.ENAMETOOLONG:
            name = str(error.filename or "a path")
            what = f"{name[:100]}…: this path of {len(name):,} characters is too long."
            _fail(InputError(what, "Use a shorter one."))
        if error.errno in REFUSALS and error.filename:
            _fail(InputError(f"{error.filename}: {error.strerror}.", REFUSALS[error.errno]))
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        _drop_output()
        _fail(InputError(f"{where}no space left on the disk.", "Free some, or choose another folder."))


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug, without the passwords that messages in it may repeat."""
    import traceback

    echo(without_passwords("".join(traceback.format_exception(kind, error, trace))), err=True, end="")


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse an argument that is empty, which as a path would mean the current folder; a label may be empty.

    Raises:
        InputError: it says where it stands.
    """
    for before, word in itertools.pairwise(words):
        if word == "" and before not in MAY_BE_EMPTY:
            raise InputError(
                f"an argument is empty: the one after '{Path(before).name}'.",
                "Write what is meant there ('.' for the current folder); perhaps a variable of the shell is not set.",
            )


def _leave(code: int) -> NoReturn:
    """Leave at once, after Python's exit functions. Another signal is too late to change anything."""
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
    """Send what is still buffered for stdout nowhere: the interpreter would try it again on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: LookalikeError) -> NoReturn:
    echo(f"error: {error.message}", err=True)
    if error.remedy:
        echo(f"  {error.remedy}", err=True)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
