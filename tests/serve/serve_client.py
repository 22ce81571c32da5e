"""A client of the service, and images to send."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from plain_runtime import PlainRuntime
from starlette.testclient import TestClient

from lookalike.serve.app import create_app
from lookalike.serve.settings import Settings


def client_of(settings: Settings, runtime: PlainRuntime) -> TestClient:
    """Who asks a service with these settings; a bug in it is an answer 500 here, as it is to a browser."""
    address = ("127.0.0.1", 50000)
    return TestClient(
        create_app(settings, runtime), base_url="http://127.0.0.1:8000", client=address, raise_server_exceptions=False
    )


def encoded(seed: int = 0, format: str = "JPEG", size: tuple[int, int] = (80, 60)) -> bytes:
    """A file of an image of random colours that run into one another."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(file, format)
    return file.getvalue()


def form(*files: bytes, field: str = "image") -> list[tuple[str, tuple[str, bytes, str]]]:
    """Files as a client's form."""
    return [(field, (f"{place}.jpg", data, "image/jpeg")) for place, data in enumerate(files)]
