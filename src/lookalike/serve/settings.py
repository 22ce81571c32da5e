"""How the service is set up: what it serves, to whom, and its limits. Wrong values are refused before it starts."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from lookalike.errors import InputError

RuntimeKind = Literal["auto", "onnx", "torch"]
Writing = Literal["off", "key", "open"]

READ_KEY = "LOOKALIKE_READ_KEY"  # environment variables that hold a key;
WRITE_KEY = "LOOKALIKE_WRITE_KEY"  # with _FILE at the end, the name of a file that holds it
BODIES = 8  # of the largest size, in memory at once
ANSWERS = 64  # likewise, that wait to be read
SHORTEST_KEY = 16  # characters
MAX_KEY_FILE = 4096  # bytes
NEW_KEY = "python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"


@dataclass(frozen=True)
class Settings:
    """The settings of one service.

    Args:
        model: a model folder or Hub id; None: the one that the gallery remembers, else the default model.
        gallery: a folder or `postgresql://USER@HOST/DATABASE#NAME`; None: nothing is searched, only recognised.
        host: the address to listen at; beyond loopback a read key must be set.
        port: of TCP; 0: one that is free.
        read_key: what a reader must show; None: everyone who can connect may read.
        write_key: what a writer must show; it opens what the read key opens, too. None: see `writing`.
        runtime: what runs the network; "auto": ONNX Runtime on a CPU, PyTorch on a GPU.
        max_body_bytes: of a request, all images together.
        max_pixels: of an image.
        max_images: of a request.
        max_waiting: images that wait for the runtime, of all requests together; beyond, 503.
        max_requests: that are received or worked on at once, beyond those for states and the page; beyond, 503.
        max_connections: at once; beyond, 503 before anything is read.
        max_connections_per_address: likewise, of one address, and of one network of IPv6.
        batch: images that go through the runtime at once, at most.
        max_answers: `k` of a search and `top` of a recognition, at most.
        max_answer_bytes: of a search with the metadata of its hits, and of an item; beyond, 422.
        receive_seconds: in which a request, headers and body, must have arrived.
        send_seconds: in which an answer must have left; a client that does not read it is cut off.
        drain_seconds: after SIGTERM, for what was accepted to be finished.
        show_names: whether answers carry the names of the gallery's files (never their folders); None: on loopback.

    Raises:
        InputError: a value that cannot be, keys that are too short or the same, or no read key beyond loopback.
    """

    model: str | None = None
    gallery: str | None = field(default=None, repr=False)  # it may hold a password
    host: str = "127.0.0.1"
    port: int = 8000
    read_key: SecretStr | None = None
    write_key: SecretStr | None = None
    runtime: RuntimeKind = "auto"
    max_body_bytes: int = 20 * 2**20
    max_pixels: int = 150_000_000
    max_images: int = 16
    max_waiting: int = 128
    max_requests: int = 256
    max_connections: int = 1000
    max_connections_per_address: int = 256
    batch: int = 32
    max_answers: int = 1000
    max_answer_bytes: int = 4 * 2**20
    receive_seconds: float = 10.0
    send_seconds: float = 30.0
    drain_seconds: float = 20.0
    show_names: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port}: there is no such port.", "Choose one from 1 to 65535; 8000 is usual.")
        for name in (
            "max_body_bytes",
            "max_pixels",
            "max_images",
            "max_waiting",
            "max_requests",
            "max_connections",
            "max_connections_per_address",
            "batch",
            "max_answers",
            "max_answer_bytes",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "It must be at least 1.")
        for name in ("receive_seconds", "send_seconds", "drain_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}.", "Give a number of seconds above 0.")
        if self.max_waiting < self.max_images:
            raise InputError(
                f"max_waiting is {self.max_waiting}, but a request may have {self.max_images} images.",
                "Let as many wait, at least.",
            )
        _check_key(self.read_key, "read")
        _check_key(self.write_key, "write")
        if self.read_key is not None and self.read_key == self.write_key:
            raise InputError("the read key and the write key are the same.", f"Make another: {NEW_KEY}")
        if not self.is_loopback and self.read_key is None:
            raise InputError(
                f"{self.host}: others can connect there, and no read key is set.",
                f"Set {READ_KEY} or {READ_KEY}_FILE, or listen at 127.0.0.1. A new key: {NEW_KEY}",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can connect: 127.0.0.0/8, ::1, or localhost."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def shows_names(self) -> bool:
        """Whether answers carry the names of the gallery's files."""
        return self.is_loopback if self.show_names is None else self.show_names

    @property
    def max_held_bytes(self) -> int:
        """Of bodies that are in memory at once, of all requests together; beyond, 503."""
        return BODIES * self.max_body_bytes

    @property
    def max_leaving_bytes(self) -> int:
        """Of answers that wait to be read, of all connections together; beyond, those that wait longest are cut off."""
        return ANSWERS * self.max_answer_bytes

    @property
    def writing(self) -> Writing:
        """Who may add and remove: who has the write key; without one everybody, where nobody else can connect and no
        read key is set ("open"; pages of other sites must still be kept out, by their Origin); else nobody.
        """
        if self.gallery is None:
            return "off"
        if self.write_key is not None:
            return "key"
        return "open" if self.is_loopback and self.read_key is None else "off"


def key_of(variable: str, file: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> SecretStr | None:
    """A key: the first line of `file`, else of the file that VARIABLE_FILE names, else what VARIABLE holds.

    Args:
        variable: `READ_KEY` or `WRITE_KEY`.
        file: that holds it; None: see the environment.
        environ: the environment.

    Returns:
        The key, or None where neither is set.

    Raises:
        InputError: a file that cannot be read or is empty, or both variables.
    """
    named, plain = environ.get(f"{variable}_FILE"), environ.get(variable)
    if file is None and named and plain:
        raise InputError(f"{variable} and {variable}_FILE are both set.", "Leave one out.")
    source = file or named
    if not source:
        return SecretStr(plain) if plain else None
    try:
        with Path(source).open("rb") as opened:
            text = opened.read(MAX_KEY_FILE).decode("ascii")
    except OSError as error:
        raise InputError(f"{source}: the key cannot be read ({error.strerror}).", "Check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"{source}: this is no key.", f"Make one: {NEW_KEY}") from None
    lines = text.splitlines()
    if not lines or not lines[0].strip():
        raise InputError(f"{source}: there is no key in this file.", f"Make one: {NEW_KEY}")
    return SecretStr(lines[0].strip())


def _check_key(key: SecretStr | None, name: str) -> None:
    if key is None:
        return
    text = key.get_secret_value()
    if len(text) < SHORTEST_KEY:
        raise InputError(f"the {name} key is shorter than {SHORTEST_KEY} characters.", f"Make a longer one: {NEW_KEY}")
    if not all("!" <= letter <= "~" for letter in text):
        raise InputError(
            f"the {name} key has letters that cannot travel in a header.", f"Use ASCII, without spaces: {NEW_KEY}"
        )
