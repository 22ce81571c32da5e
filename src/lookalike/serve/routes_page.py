"""The page and its files, out of memory: what is not one of them when the service starts cannot be asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request, Response

from lookalike.serve.refusals import RefusedError

START = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class File:
    """A file of the page."""

    data: bytes
    type: str
    tag: str


def files() -> dict[str, File]:
    """The files of the page, by name; all of them in one folder of the package."""
    found: dict[str, File] = {}
    for path in (resources.files("lookalike.serve") / "page").iterdir():
        kind = TYPES.get(f".{path.name.rpartition('.')[2]}")
        if kind is not None and path.is_file():
            data = path.read_bytes()
            found[path.name] = File(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found


def routes() -> APIRouter:
    """`/` and `/page/NAME`."""
    router = APIRouter(include_in_schema=False)
    known = files()

    def answer(name: str, request: Request) -> Response:
        file = known.get(name)
        if file is None:
            raise RefusedError(404, "there is nothing here.")
        headers = {"Cache-Control": "no-cache", "ETag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=file.type, headers=headers)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def start(request: Request) -> Response:
        return answer(START, request)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def page(name: str, request: Request) -> Response:
        return answer(name, request)

    return router
