"""Parameters of a query: only those that a route takes. One that is misspelt would be left out without a word."""

from __future__ import annotations

from typing import get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.routing import APIRoute

from lookalike.errors import nearest
from lookalike.serve.errors import RefusedError

SHOWN = 80  # characters of a name that is not known


async def check_parameters(request: Request) -> None:
    """Refuse a query with a parameter that its route does not take, twice one that it takes once, or what is no text.

    Raises:
        RefusedError: 422; it names the parameter, and the nearest of those that there are.
    """
    query = request.scope["query_string"]
    if not query:
        return
    try:
        given = [name for name, _ in parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")]
    except ValueError:
        raise RefusedError(422, "the query is not text in UTF-8.", "Encode it as UTF-8, then with %.") from None
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    kinds = {field.alias: field.field_info.annotation for field in route.dependant.query_params}
    for name in given:
        if name not in kinds:
            takes = f"It takes: {', '.join(kinds)}." if kinds else "It takes none."
            raise RefusedError(
                422, f"query {name[:SHOWN]}: there is no such parameter here.{nearest(name[:SHOWN], kinds)}", takes
            )
        if given.count(name) > 1 and not _takes_several(kinds[name]):
            raise RefusedError(422, f"query {name}: given more than once.", "Give it once.")


def _takes_several(annotation: object) -> bool:
    return any(get_origin(one) is list for one in (annotation, *get_args(annotation)))
