"""A plain service as the baseline: a FastAPI handler that runs one PyTorch forward pass per request.

    uvicorn --app-dir benchmarks plain_service:app

POST /async works in the event loop, POST /threads in FastAPI's threads; both take an image as the body.
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
    """Return the five most probable classes."""
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
    """Predict in the event loop, as most tutorials do."""
    return answer(await request.body())


@app.post("/threads")
def in_threads(data: Annotated[bytes, Body(media_type="image/jpeg")]) -> list[dict[str, Any]]:
    """Predict in one of FastAPI's threads."""
    return answer(data)


@app.get("/ready")
def ready() -> str:
    """Answer when the service is ready."""
    return "ready"
