"""`lookalike serve`: classify and search over HTTP, with a web page."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import completion
from lookalike.cli.console import echo

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")  # of the extra `serve`


class RuntimeKind(StrEnum):
    """What runs the network."""

    auto = "auto"
    onnx = "onnx"
    torch = "torch"


def serve(
    gallery: Annotated[
        str | None,
        typer.Argument(
            metavar="[GALLERY]",
            help="A folder, or postgresql://USER@HOST/DATABASE#NAME. Without a gallery there is no search.",
            show_default=False,
            envvar="LOOKALIKE_GALLERY",
            autocompletion=completion.galleries,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=f"{completion.MODEL_HELP} By default the model that the gallery remembers, or else the default model.",
            envvar="LOOKALIKE_MODEL",
            autocompletion=completion.models,
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="TCP port; 0: any free port.")] = 8000,
    runtime: Annotated[
        RuntimeKind,
        typer.Option("--runtime", help="What runs the network. auto: onnx on a CPU, torch on a GPU."),
    ] = RuntimeKind.auto,
    read_key_file: Annotated[
        Path | None, typer.Option("--read-key-file", metavar="FILE", help="File that holds the read key.")
    ] = None,
    write_key_file: Annotated[
        Path | None, typer.Option("--write-key-file", metavar="FILE", help="File that holds the write key.")
    ] = None,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, metavar="MIB", help="Largest request in MiB, all images together.")
    ] = 20,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, metavar="MILLIONS", help="Largest image in millions of pixels.")
    ] = 150,
    max_images: Annotated[int, typer.Option("--max-images", min=1, help="Most images in a request.")] = 16,
    max_waiting: Annotated[
        int,
        typer.Option("--max-waiting", min=1, help="Most images in flight, of all requests; beyond that, 503."),
    ] = 128,
    max_connections: Annotated[
        int, typer.Option("--max-connections", min=1, help="Most connections at once; beyond that, 503.")
    ] = 1000,
    max_connections_per_address: Annotated[
        int,
        typer.Option(
            "--max-connections-per-address", min=1, help="Most connections from one address; a proxy is one address."
        ),
    ] = 256,
    drain: Annotated[
        float, typer.Option("--drain", min=0.1, help="Seconds to finish accepted requests after SIGTERM.")
    ] = 20.0,
    names: Annotated[
        bool | None,
        typer.Option(
            "--names/--no-names",
            help="Whether responses hold the names of the gallery's files. By default only on loopback.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Classify and search over HTTP, with a web page at / and the API's documentation at /docs.

    Keys come from LOOKALIKE_READ_KEY and LOOKALIKE_WRITE_KEY, or from files. Ctrl-C and SIGTERM stop the service.
    """
    _check_installed()
    from lookalike.serve.settings import READ_KEY, WRITE_KEY, Settings, key_of

    settings = Settings(
        model=model,
        gallery=gallery,
        host=host,
        port=port,
        read_key=key_of(READ_KEY, read_key_file),
        write_key=key_of(WRITE_KEY, write_key_file),
        runtime=runtime.value,
        max_body_bytes=max_body * 2**20,
        max_pixels=max_pixels * 1_000_000,
        max_images=max_images,
        max_waiting=max_waiting,
        max_connections=max_connections,
        max_connections_per_address=max_connections_per_address,
        drain_seconds=drain,
        show_names=names,
    )
    from lookalike.serve.server import run_server

    run_server(settings, lambda url: echo(f"Lookalike is running on {url}   (Ctrl-C stops it)", err=True))


def absent_packages() -> list[str]:
    """The packages for serving that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def _check_installed() -> None:
    from lookalike.extras import missing

    if absent := absent_packages():
        raise missing(f"packages for serving are not installed: {', '.join(absent)}.", "serve")
