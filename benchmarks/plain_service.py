"""The plain way to serve a model, to be measured against: a FastAPI handler, one request, one forward of PyTorch.

    uvicorn --app-dir benchmarks plain_service:app

POST /async does its work in the event loop, POST /threads in FastAPI's threads; both take an image as the body.
"""

from __future__ import annotations

import io
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import Body, FastAPI, Request
from PIL import Image

import lookalike

app = FastAPI()
model = lookalike.load()
size = model.config.image_size
mean, std = (torch.tensor(each)[:, None, None] for each in (model.config.mean, model.config.std))


@torch.inference_mode()
def answer(data: bytes) -> list[dict[str, Any]]:
    """The five most probable classes."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    x = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255 - mean) / std
    probabilities, indices = model.network(x).softmax(1)[0].topk(5)
    names = model.config.class_names
    return [
        {"label": names[i], "probability": p} for p, i in zip(probabilities.tolist(), indices.tolist(), strict=True)
    ]


@app.post("/async")
async def in_loop(request: Request) -> list[dict[str, Any]]:
    """In the event loop, as most tutorials do."""
    return answer(await request.body())


@app.post("/threads")
def in_threads(data: Annotated[bytes, Body(media_type="image/jpeg")]) -> list[dict[str, Any]]:
    """In a thread of FastAPI's."""
    return answer(data)


@app.get("/ready")
def ready() -> str:
    """It is."""
    return "ready"
