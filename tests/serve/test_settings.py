"""Settings: invalid values are refused; sources of keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from lookalike.errors import InputError
from lookalike.serve.settings import READ_KEY, Settings, key_of

KEY, OTHER = SecretStr("k" * 16), SecretStr("w" * 16)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_requires_no_key(host: str) -> None:
    assert Settings(host=host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.example.org", "0"])
def test_other_addresses_require_a_read_key(host: str) -> None:
    with pytest.raises(InputError) as caught:
        Settings(host=host, write_key=OTHER)
    assert caught.value.message.startswith(host)
    assert "LOOKALIKE_READ_KEY" in caught.value.remedy
    assert not Settings(host=host, read_key=KEY).is_loopback


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (Settings(), True),
        (Settings(show_names=False), False),
        (Settings(host="::1", read_key=KEY), True),
        (Settings(host="0.0.0.0", read_key=KEY), False),
        (Settings(host="0.0.0.0", read_key=KEY, show_names=True), True),
    ],
)
def test_file_names_are_shown_on_loopback_only(settings: Settings, shown: bool) -> None:
    assert settings.shows_names == shown


@pytest.mark.parametrize(
    ("settings", "writing"),
    [
        (Settings(), "off"),
        (Settings(write_key=OTHER), "off"),
        (Settings(gallery="g"), "open"),
        (Settings(gallery="g", write_key=OTHER), "key"),
        (Settings(gallery="g", read_key=KEY), "off"),
        (Settings(gallery="g", read_key=KEY, write_key=OTHER), "key"),
        (Settings(gallery="g", host="0.0.0.0", read_key=KEY), "off"),
        (Settings(gallery="g", host="0.0.0.0", read_key=KEY, write_key=OTHER), "key"),
    ],
)
def test_who_may_write(settings: Settings, writing: str) -> None:
    assert settings.writing == writing


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"port": 65536}, "port 65536"),
        ({"port": -1}, "port -1"),
        ({"max_images": 0}, "max_images is 0"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"max_images": 16, "max_waiting": 15}, "max_waiting is 15"),
        ({"drain_seconds": 0}, "drain_seconds"),
        ({"receive_seconds": float("nan")}, "receive_seconds is nan"),
        ({"read_key": SecretStr("short")}, "read key"),
        ({"write_key": SecretStr("k" * 15 + " ")}, "write key"),
        ({"write_key": SecretStr("é" * 16)}, "write key"),
        ({"read_key": KEY, "write_key": KEY}, "key"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Settings(**values)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_a_key_is_never_shown() -> None:
    assert KEY.get_secret_value() not in repr(Settings(read_key=KEY))


def test_keys_come_from_files_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("of-the-file-0123456789\nand more\n")
    assert key_of(READ_KEY, environ={}) is None
    assert key_of(READ_KEY, environ={READ_KEY: ""}) is None
    assert key_of(READ_KEY, environ={READ_KEY: "of-the-environment"}) == SecretStr("of-the-environment")
    named = key_of(READ_KEY, environ={f"{READ_KEY}_FILE": str(file)})
    given = key_of(READ_KEY, file, environ={READ_KEY: "of-the-environment"})
    assert named == given == SecretStr("of-the-file-0123456789")


@pytest.mark.parametrize("content", [b"", b"\n\nx", b"\xff\xfe"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(file))):
        key_of(READ_KEY, file, environ={})
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "none"))):
        key_of(READ_KEY, tmp_path / "none", environ={})
    with pytest.raises(InputError, match=READ_KEY):
        key_of(READ_KEY, environ={READ_KEY: "x", f"{READ_KEY}_FILE": str(file)})
