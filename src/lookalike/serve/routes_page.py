"""The page and its files, out of memory: what is not one of them when the service starts cannot be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request, Response

from lookalike.serve.refusals import RefusedError
from lookalike.serve.revalidation import revalidated, tag_of

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
            found[path.name] = File(data, kind, tag_of(data))
    return found


def routes() -> APIRouter:
    """`/` and `/page/NAME`."""
    router = APIRouter(include_in_schema=False)
    known = files()

    def answer(name: str, request: Request) -> Response:
        file = known.get(name)
        if file is None:
            raise RefusedError(404, "there is nothing here.")
        return revalidated(request, file.data, file.tag, file.type, "no-cache")

    @router.get("/")
    async def start(request: Request) -> Response:
        return answer(START, request)

    @router.get("/page/{name}")
    async def page(name: str, request: Request) -> Response:
        return answer(name, request)

    return router
