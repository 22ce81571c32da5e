"""The settings of a service: what it serves, to whom, and its limits. Invalid values are refused before it starts."""

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

READ_KEY = "LOOKALIKE_READ_KEY"  # environment variables that hold the keys;
WRITE_KEY = "LOOKALIKE_WRITE_KEY"  # with _FILE appended, the name of a file that holds the key
HELD_BODIES = 8  # bodies of the largest size that may be in memory at once
UNREAD_ANSWERS = 64  # answers of the largest size that may wait to be read
MIN_KEY_LENGTH = 16  # characters
MAX_KEY_FILE = 4096  # bytes
NEW_KEY = "python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"


@dataclass(frozen=True)
class Settings:
    """The settings of one service.

    Args:
        model: see `lookalike.load`. None: the model that the gallery remembers, or else the default model.
        gallery: a folder or `postgresql://USER@HOST/DATABASE#NAME`. None: no search.
        host: address to listen on. Addresses other than loopback require a read key.
        port: TCP port; 0: any free port.
        read_key: key for reading; None: no key is required.
        write_key: key for reading and for changing items; None: see `writing`.
        runtime: what runs the network; "auto": ONNX Runtime on a CPU, PyTorch on a GPU.
        max_body_bytes: size of a request, all images together.
        max_pixels: pixels of an image.
        max_images: images of a request.
        max_waiting: images in flight, of all requests together; beyond, requests are answered 503.
        max_requests: requests that are received or answered at once; beyond, 503. `/live`, `/ready` and the pages do
            not count.
        max_connections: connections at once; beyond, 503 before a request is read.
        max_connections_per_address: connections at once from one IPv4 address or one IPv6 network.
        batch_size: images that go through the network together.
        max_answers: largest `k`.
        max_answer_bytes: size of a response with its metadata; beyond, 422.
        receive_seconds: time for a request, headers and body, to arrive.
        send_seconds: time for an answer to be read by the client.
        drain_seconds: time after SIGTERM to finish accepted requests.
        show_names: whether responses hold the names of the gallery's files (never their folders). None: only if the
            service listens on loopback.

    Raises:
        InputError: a value is out of range, a key is too short, both keys are the same, or a read key is missing.
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
    batch_size: int = 32
    max_answers: int = 1000
    max_answer_bytes: int = 4 * 2**20
    receive_seconds: float = 10.0
    send_seconds: float = 30.0
    drain_seconds: float = 20.0
    show_names: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port}: out of range.", "Choose one from 1 to 65535; 8000 is usual.")
        for name in (
            "max_body_bytes",
            "max_pixels",
            "max_images",
            "max_waiting",
            "max_requests",
            "max_connections",
            "max_connections_per_address",
            "batch_size",
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
                f"max_waiting is {self.max_waiting}, less than max_images, {self.max_images}.",
                "Set max_waiting to at least max_images.",
            )
        _check_key(self.read_key, "read")
        _check_key(self.write_key, "write")
        if self.read_key is not None and self.read_key == self.write_key:
            raise InputError("the read key and the write key are the same.", f"Make another: {NEW_KEY}")
        if not self.is_loopback and self.read_key is None:
            raise InputError(
                f"{self.host}: other machines can connect to this address, and no read key is set.",
                f"Set {READ_KEY} or {READ_KEY}_FILE, or listen on 127.0.0.1. A new key: {NEW_KEY}",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect: 127.0.0.0/8, ::1, or localhost."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def shows_names(self) -> bool:
        """Whether responses hold the names of the gallery's files."""
        return self.is_loopback if self.show_names is None else self.show_names

    @property
    def max_held_bytes(self) -> int:
        """Size of all bodies in memory together; beyond, requests are answered 503."""
        return HELD_BODIES * self.max_body_bytes

    @property
    def max_unread_bytes(self) -> int:
        """Size of all answers that wait to be read; beyond, the connections that wait longest are closed."""
        return UNREAD_ANSWERS * self.max_answer_bytes

    @property
    def writing(self) -> Writing:
        """Who may change items: "key", whoever has the write key; "open", everyone; "off", nobody.

        Without a write key, it is "open" on loopback if there is no read key either. Pages of other sites are then
        still refused, by their origin.
        """
        if self.gallery is None:
            return "off"
        if self.write_key is not None:
            return "key"
        return "open" if self.is_loopback and self.read_key is None else "off"


def key_of(variable: str, file: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> SecretStr | None:
    """Read a key: the first line of `file`, or of the file that VARIABLE_FILE names, or the value of VARIABLE.

    Args:
        variable: `READ_KEY` or `WRITE_KEY`.
        file: holds the key; None: use the environment.
        environ: the environment.

    Returns:
        The key; None if there is none.

    Raises:
        InputError: the file cannot be read or holds no key, or both variables are set.
    """
    file_from_environ, value = environ.get(f"{variable}_FILE"), environ.get(variable)
    if file is None and file_from_environ and value:
        raise InputError(f"{variable} and {variable}_FILE are both set.", "Unset one of them.")
    source = file or file_from_environ
    if not source:
        return SecretStr(value) if value else None
    try:
        with Path(source).open("rb") as opened:
            text = opened.read(MAX_KEY_FILE).decode("ascii")
    except OSError as error:
        raise InputError(f"{source}: cannot read the key ({error.strerror}).", "Check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"{source}: not a key: it is not ASCII text.", f"Make a key: {NEW_KEY}") from None
    lines = text.splitlines()
    if not lines or not lines[0].strip():
        raise InputError(f"{source}: the first line is empty.", f"Make a key: {NEW_KEY}")
    return SecretStr(lines[0].strip())


def _check_key(key: SecretStr | None, name: str) -> None:
    if key is None:
        return
    text = key.get_secret_value()
    if len(text) < MIN_KEY_LENGTH:
        raise InputError(
            f"the {name} key is shorter than {MIN_KEY_LENGTH} characters.", f"Make a longer one: {NEW_KEY}"
        )
    if not all("!" <= letter <= "~" for letter in text):
        raise InputError(
            f"the {name} key has characters that a header cannot hold.", f"Use ASCII without spaces: {NEW_KEY}"
        )
