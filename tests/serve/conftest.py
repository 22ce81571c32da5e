"""A small model, a gallery of twelve images, and the service on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_runtime import PlainRuntime
from serve_client import client_of
from starlette.testclient import TestClient

from lookalike import Gallery
from lookalike.models.pretrained import ImageModel, load
from lookalike.serve.settings import Settings
from small_gallery import album, model_folder


@pytest.fixture(scope="session")
def model_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small model: three animals, 32 pixels."""
    return model_folder(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def model(model_place: Path) -> ImageModel:
    """The small model."""
    return load(model_place)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in three folders."""
    return album(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def shared_gallery(tmp_path_factory: pytest.TempPathFactory, model_place: Path, photos: Path) -> Path:
    """A gallery of the twelve images, which no test changes."""
    place = tmp_path_factory.mktemp("shared") / "photos.gallery"
    with Gallery.create(place, model_place) as gallery:
        gallery.add(photos)
    return place


@pytest.fixture
def gallery_place(tmp_path: Path, shared_gallery: Path) -> Path:
    """A copy of the gallery for one test."""
    return shutil.copytree(shared_gallery, tmp_path / "photos.gallery")


@pytest.fixture
def runtime(model: ImageModel) -> PlainRuntime:
    """The slow, obvious runtime on the small model."""
    return PlainRuntime(model)


@pytest.fixture
def settings(gallery_place: Path) -> Settings:
    """Of a service on the gallery of one test, on loopback, without keys."""
    return Settings(gallery=str(gallery_place), show_names=True)


@pytest.fixture
def client(settings: Settings, runtime: PlainRuntime) -> Iterator[TestClient]:
    """A client of a service that runs for one test."""
    with client_of(settings, runtime) as client:
        yield client


@pytest.fixture(scope="session")
def reader(shared_gallery: Path, model: ImageModel) -> Iterator[TestClient]:
    """A client of a service that all tests share. They change nothing."""
    with client_of(Settings(gallery=str(shared_gallery), show_names=True), PlainRuntime(model)) as client:
        yield client
