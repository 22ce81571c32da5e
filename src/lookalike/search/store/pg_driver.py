"""psycopg, the driver of PostgreSQL, or the error that says how to install it. The `pg_` modules take it from here."""

from __future__ import annotations

from lookalike.extras import missing

try:
    import psycopg
    from psycopg import adapt, conninfo, errors, pq, sql
    from psycopg.types.json import Jsonb
except ImportError as error:
    raise missing(f"a gallery in PostgreSQL needs psycopg, which cannot be imported ({error}).", "postgres") from None

__all__ = ["Jsonb", "adapt", "conninfo", "errors", "pq", "psycopg", "sql"]
