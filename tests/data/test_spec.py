"""The data sets known by name: what is stated of them, where they are looked for, where they lie."""

from __future__ import annotations

import re
from pathlib import Path

import platformdirs
import pytest

from lookalike.data.download import configured_mirrors
from lookalike.data.registry import DATASETS, data_home, installed
from lookalike.data.spec import HUB, DatasetSpec
from lookalike.data.tiny_imagenet import NAME
from lookalike.evaluation.protocols import named


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LOOKALIKE_MIRROR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOOKALIKE_DATA", str(tmp_path / "sets"))
    return tmp_path / "sets"


def test_tiny_imagenet_comes_from_stanford_first_and_its_zip_is_known() -> None:
    official, *others = DATASETS[NAME].mirrors
    (file,) = official.files
    assert official.name == "cs231n.stanford.edu"
    assert file.url == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert file.checksum == "md5:90528d7ca1a48142e341f4ef8d21d0de"
    assert file.size_bytes == DATASETS[NAME].size_bytes == 248_100_043
    assert [other.name.split()[0] for other in others] == ["Hugging"]


@pytest.mark.parametrize("name", DATASETS)
def test_every_file_can_be_verified(name: str) -> None:
    for mirror in DATASETS[name].mirrors:
        assert len({file.name for file in mirror.files}) == len(mirror.files) > 0
        for file in mirror.files:
            assert file.url.endswith(f"/{file.name}")
            announced = not file.checksum and file.url.startswith(f"{HUB}/")
            published = re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", file.checksum) and file.size_bytes
            assert announced or published, file


def test_files_on_the_hub_are_of_one_fixed_revision() -> None:
    for file in DATASETS[NAME].mirrors[1].files:
        assert re.search(r"/resolve/[0-9a-f]{40}/data/(train|valid)-00000-of-00001-[0-9a-f]{16}\.parquet$", file.url)


def test_data_home_is_set_by_the_environment_or_lies_in_the_users_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_home() == home
    monkeypatch.setenv("LOOKALIKE_DATA", "~/sets")
    assert data_home() == Path("~/sets").expanduser()
    monkeypatch.setenv("LOOKALIKE_DATA", "")
    assert data_home() == Path(platformdirs.user_data_dir("lookalike")) / "data"


def test_a_set_is_installed_when_its_folder_is_there(home: Path, tmp_path: Path) -> None:
    assert installed("pets") is None
    (home / "pets").mkdir(parents=True)
    assert installed("pets") == home / "pets"
    assert installed("pets", tmp_path) is None
    (home / "file").write_text("no folder")
    assert installed("file") is None


def test_a_known_set_has_its_layout(home: Path) -> None:
    (home / NAME / "train").mkdir(parents=True)
    assert installed(NAME) is None, "without val/ it is something else"
    (home / NAME / "val").mkdir()
    assert installed(NAME) == home / NAME


@pytest.mark.parametrize("name", ["", ".", "..", "../sets", ".pets-x.partial", "a/b", "/"])
def test_what_cannot_be_a_name_is_not_looked_for(name: str, home: Path) -> None:
    for folder in (home / "a" / "b", home / ".pets-x.partial"):
        folder.mkdir(parents=True)
    assert installed(name) is None


def test_mirrors_of_ones_own_come_first_and_the_hub_can_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DATASETS[NAME]
    assert configured_mirrors(spec.mirrors) == spec.mirrors
    monkeypatch.setenv("LOOKALIKE_MIRROR", "http://files.example/sets/")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example/")
    own, official, hub = configured_mirrors(spec.mirrors)
    assert own.files[0].url == "http://files.example/sets/tiny-imagenet-200.zip"
    assert own.files[0].checksum == spec.mirrors[0].files[0].checksum, "one's own mirror is held to it, too"
    assert official == spec.mirrors[0]
    assert [file.url for file in hub.files] == [
        file.url.replace("https://huggingface.co/", "http://hub.example/") for file in spec.mirrors[1].files
    ]


@pytest.mark.parametrize("spec", DATASETS.values(), ids=DATASETS)
def test_the_facts_agree_with_each_other(spec: DatasetSpec) -> None:
    assert spec.mirrors or spec.by_hand
    assert spec.url.startswith("http")
    assert str(spec.classes) in spec.summary.replace(",", "")
    if spec.zero_shot is not None:
        assert spec.zero_shot.train + spec.zero_shot.test == spec.images
        protocol = named(spec.zero_shot.protocol)
        assert protocol.images == (spec.zero_shot.train, spec.zero_shot.test)
