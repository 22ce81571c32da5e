"""`/v1/predict` and `/v1/embed` agree with the model, and errors name the image."""

from __future__ import annotations

import io
import struct
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain_runtime import PlainRuntime
from serve_client import client_of, encoded, form
from starlette.testclient import TestClient

from lookalike.models.heads import Head
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.serve.errors import RefusedError
from lookalike.serve.requests import parse_images
from lookalike.serve.settings import Settings

JPEG = {"Content-Type": "image/jpeg"}


def test_predictions_match_the_model(reader: TestClient, model: ImageModel) -> None:
    data = encoded(1)
    answer = reader.post("/v1/predict?k=2", content=data, headers=JPEG)
    assert answer.status_code == 200
    tree = answer.json()
    assert tree.keys() == {"model", "took_ms", "predictions"}
    assert tree["took_ms"] > 0
    ((expected),) = model.predict([data], k=2)
    (result,) = tree["predictions"]
    assert result["unknown"] is False
    assert [each["label"] for each in result["classes"]] == [each.label for each in expected]
    assert [each["class_id"] for each in result["classes"]] == [each.class_id for each in expected]
    got = [each["probability"] for each in result["classes"]]
    np.testing.assert_allclose(got, [each.probability for each in expected], atol=1e-6)


@pytest.mark.parametrize("size", [(8192, 6144), (12000, 9000)])
def test_the_largest_photos_of_phones_are_taken(size: tuple[int, int], reader: TestClient, model: ImageModel) -> None:
    file = io.BytesIO()
    Image.new("L", size, 100).save(file, "JPEG")
    answer = reader.post("/v1/predict?k=1", content=file.getvalue(), headers=JPEG)
    assert answer.status_code == 200
    ((expected),) = model.predict([np.full((32, 32, 3), 100, np.uint8)], k=1)
    assert answer.json()["predictions"][0]["classes"][0]["label"] == expected[0].label


def test_predictions_are_in_the_order_of_the_images(reader: TestClient, model: ImageModel) -> None:
    files = [encoded(seed) for seed in range(5)]
    tree = reader.post("/v1/predict?k=3", files=form(*files)).json()
    expected = model.predict(files, k=3)
    for result, own in zip(tree["predictions"], expected, strict=True):
        assert [each["label"] for each in result["classes"]] == [each.label for each in own]
        assert sum(each["probability"] for each in result["classes"]) == pytest.approx(1, abs=1e-6)


def test_the_temperature_flattens(settings: Settings, model: ImageModel) -> None:
    runtime = PlainRuntime(model)
    runtime.temperature = 4.0
    hot = ImageModel(model.network, model.config.model_copy(update={"temperature": 4.0}))
    ((expected),) = hot.predict([encoded(1)], k=1)
    with client_of(settings, runtime) as client:
        (result,) = client.post("/v1/predict?k=1", content=encoded(1), headers=JPEG).json()["predictions"]
    assert result["classes"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-6)


def test_improbable_predictions_are_unknown(settings: Settings, model: ImageModel) -> None:
    ((first, *_),) = model.predict([encoded(1)])
    for threshold, unknown in ((first.probability + 0.01, True), (first.probability - 0.01, False), (None, False)):
        runtime = PlainRuntime(model)
        runtime.unknown_threshold = threshold
        with client_of(settings, runtime) as client:
            (result,) = client.post("/v1/predict", content=encoded(1), headers=JPEG).json()["predictions"]
            about = client.get("/v1/about").json()
        assert result["unknown"] is unknown
        assert result["classes"]  # said all the same
        assert about["model"]["unknown_threshold"] == threshold


def test_vectors_match_the_model(reader: TestClient, model: ImageModel) -> None:
    files = [encoded(seed) for seed in range(3)]
    tree = reader.post("/v1/embed", files=form(*files)).json()
    assert tree["model"] == model.fingerprint
    assert tree["dim"] == model.embedding_dim
    np.testing.assert_allclose(tree["vectors"], model.embed(files), atol=1e-6)


def test_a_model_without_classes_refuses_predict(tmp_path: Path, model: ImageModel) -> None:
    head = Head(dim=8)
    config = model.config.model_copy(update={"head": head})
    network = create_model(config.name, config.num_classes, config.options, head)
    with client_of(Settings(), PlainRuntime(ImageModel(network, config).eval())) as client:
        refused = client.post("/v1/predict", content=encoded(1), headers=JPEG)
        vectors = client.post("/v1/embed", content=encoded(1), headers=JPEG).json()["vectors"]
    assert refused.status_code == 409
    assert len(vectors[0]) == 8


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_are_detected_by_content(reader: TestClient, model: ImageModel, format: str) -> None:
    data = encoded(2, format)
    answer = reader.post("/v1/embed", content=data, headers={"Content-Type": "application/octet-stream"})
    np.testing.assert_allclose(answer.json()["vectors"], model.embed([data]), atol=1e-6)


def bomb() -> bytes:
    """A PNG of 60,000 × 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (b"", None),
        (b"hello", None),
        (b"P6 2 2 255\n" + bytes(12), None),  # PPM
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (encoded(3)[:-40], None),
        (encoded(3, "PNG")[:200], None),
        (encoded(3, "TIFF")[:60], None),
        (bomb(), "max_pixels"),
    ],
    ids=["empty", "text", "ppm", "svg", "cut jpeg", "cut png", "cut tiff", "bomb"],
)
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_an_image_that_cannot_be_read_is_named_by_its_position(
    reader: TestClient, data: bytes, limit: str | None
) -> None:
    for route in ("/v1/predict", "/v1/embed", "/v1/items"):
        answer = reader.post(route, files=form(encoded(1), data, encoded(2)))
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["message"].startswith("image 2: ")
        assert error["remedy"]
        assert error.get("limit", {}).get("name") == limit
    alone = reader.post("/v1/search", files=form(data))
    assert (alone.status_code, alone.json()["error"]["message"].startswith("image: ")) == (422, True)
    assert reader.get("/v1/about").json()["gallery"]["items"] == 12  # none of the three images was added


@pytest.mark.parametrize(
    ("changes", "files", "limit"),
    [
        ({"max_images": 2}, [encoded(1)] * 3, {"name": "max_images", "value": 2}),
        ({"max_pixels": 4799}, [encoded(1)], {"name": "max_pixels", "value": 4799}),
        ({"max_answers": 4}, [encoded(1)], {"name": "max_answers", "value": 4}),
    ],
)
def test_limits_are_named(
    settings: Settings, runtime: PlainRuntime, changes: dict[str, int], files: list[bytes], limit: dict[str, object]
) -> None:
    with client_of(replace(settings, **changes), runtime) as client:
        answer = client.post("/v1/predict", files=form(*files))
        about = client.get("/v1/about").json()
    assert answer.status_code == 422
    assert answer.json()["error"]["limit"] == limit
    assert about["limits"][limit["name"]] == limit["value"]


def test_an_image_at_the_limit_is_accepted(settings: Settings, runtime: PlainRuntime) -> None:
    with client_of(replace(settings, max_pixels=4800, max_images=1), runtime) as client:
        assert client.post("/v1/predict?k=3", files=form(encoded(1))).status_code == 200


def test_a_body_over_the_limit_is_413(settings: Settings, runtime: PlainRuntime) -> None:
    with client_of(replace(settings, max_body_bytes=5000), runtime) as client:
        answer = client.post("/v1/predict", content=bytes(5001), headers=JPEG)
        streamed = client.post("/v1/predict", content=iter([bytes(3000)] * 2), headers=JPEG)
    for one in (answer, streamed):
        assert one.status_code == 413
        assert one.json()["error"]["limit"] == {"name": "max_body_bytes", "value": 5000}


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        (None, b"", 415),
        ("text/plain", b"x", 415),
        ("application/json", b'{"url": "http://10.0.0.1/"}', 415),
        ("image/png", b"", 422),
        ("multipart/form-data", b"", 422),
        ("multipart/form-data; boundary=x", b"", 422),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 422),
        ("multipart/form-data; boundary=x", b"--y\r\n", 422),
        ("multipart/form-data; boundary=" + "x" * 300, b"", 422),
    ],
)
def test_bodies_without_an_image_are_refused(
    reader: TestClient, content_type: str | None, body: bytes, status: int
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = reader.post("/v1/embed", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["remedy"]


def test_forms_with_other_fields_are_refused(reader: TestClient) -> None:
    other = reader.post("/v1/embed", files=form(encoded(1), field="file"))
    assert "'file'" in other.json()["error"]["message"]
    text = reader.post("/v1/embed", files={"image": (None, "http://10.0.0.1/cat.jpg")})
    assert "'image'" in text.json()["error"]["message"]
    assert (other.status_code, text.status_code) == (422, 422)


@pytest.mark.parametrize(
    ("disposition", "status"),
    [
        ("name=\"image\"; filename*=UTF-8''caf%C3%A9.jpg", 200),
        ("name=image; FILENAME* = UTF-8''a.jpg", 200),
        ('filename="a.jpg"; name="image"', 200),
        ('name="image"; note="; filename*=x"', 422),
        ('name="image"', 422),
    ],
)
def test_a_form_file_may_have_only_an_encoded_name(reader: TestClient, disposition: str, status: int) -> None:
    head = f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    body = head + encoded(1) + b"\r\n--x--\r\n"
    answer = reader.post("/v1/embed", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("boundary", ["x", "-" * 40])
@pytest.mark.parametrize(
    "nasty",
    [
        "\r\n--{boundary}?", "\r\n--{boundary}\r\n\r\n", "\r\n--{boundary}\r", "\r\n--{boundary}-", "\r\n--{cut}",
        "\r\n", "\r",
        "-", "a:b\r\n", "a", ";", '"',
    ],
)  # fmt: skip
@pytest.mark.parametrize("within", ["data", "headers", "value", "preamble"])
def test_no_form_takes_long_to_parse(boundary: str, nasty: str, within: str) -> None:
    unit = nasty.format(boundary=boundary, cut=boundary[:-1]).encode()
    head = b"--" + boundary.encode() + b"\r\n"
    disposition = b'Content-Disposition: form-data; name="image"; filename="a"'
    start = {
        "data": head + disposition + b"\r\n\r\n",
        "headers": head,
        "value": head + disposition + b"; x=",
        "preamble": b"\r\n",
    }[within]
    body = start + unit * (4 * 2**20 // len(unit)) + b"\r\n--" + boundary.encode() + b"--\r\n"
    began = time.thread_time()
    with suppress(RefusedError):
        parse_images(body, f"multipart/form-data; boundary={boundary}", 16)
    assert time.thread_time() - began < 0.4  # 1.8 s where each byte is a step; 0.02 s where none is


def test_a_form_may_hold_the_maximum_of_images() -> None:
    def body(count: int) -> bytes:
        part = b'\r\n--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc'
        return part * count + b"\r\n--x--\r\n"

    for start in (0, 2):  # with and without the first line's end
        assert parse_images(body(16)[start:], "multipart/form-data; boundary=x", 16) == [("image", b"abc")] * 16
        with pytest.raises(RefusedError, match="16"):
            parse_images(body(17)[start:], "multipart/form-data; boundary=x", 16)


@pytest.mark.parametrize("k", ["0", "-1", "x", "1e3", "99999"])
def test_k_is_checked(reader: TestClient, k: str) -> None:
    answer = reader.post(f"/v1/predict?k={k}", content=encoded(1), headers=JPEG)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("query k")
