"""The tables of a gallery in PostgreSQL: one schema of the gallery's name, and what is in it.

    gallery      one row: the format, and what the gallery was made with
    images       a picture, with its vector; `checksum` is of the vector
    thumbnails   its small JPEG
    rejected     files that could not be read

Every name is written out with its schema, pgvector's types and operators too: no search path can change what they mean.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from lookalike.errors import InputError, nearest
from lookalike.search.store.base import About
from lookalike.search.store.pg_driver import errors, psycopg, sql
from lookalike.search.store.pg_link import Link

FORMAT = 1
LONGEST = 16_000  # numbers of a `halfvec`
INDEXED = 4_000  # numbers up to which pgvector can index it; longer ones are always compared one by one
NAME_BYTES = 63
GRAPH = "images_by_vector"

# Text is compared by its bytes, so that a change of the server's locale can neither reorder nor damage an index.
# A row's vector stays beside its other columns where it fits into a page with them: a scan need not look elsewhere.
TABLES = """
CREATE SCHEMA {s};
CREATE TABLE {s}.gallery (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    about json NOT NULL
);
CREATE TABLE {s}.images (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path text COLLATE "C" NOT NULL CONSTRAINT images_by_path UNIQUE,
    digest bytea NOT NULL,
    size bigint NOT NULL,
    modified bigint NOT NULL,
    label text COLLATE "C",
    metadata jsonb NOT NULL,
    look bigint NOT NULL,
    vector {v}.halfvec({dim}) NOT NULL,
    checksum bigint NOT NULL
);
CREATE TABLE {s}.thumbnails (
    id bigint PRIMARY KEY REFERENCES {s}.images ON DELETE CASCADE,
    jpeg bytea NOT NULL,
    checksum bigint NOT NULL
);
ALTER TABLE {s}.thumbnails ALTER COLUMN jpeg SET STORAGE EXTERNAL;
CREATE TABLE {s}.rejected (
    path text COLLATE "C" PRIMARY KEY,
    reason text NOT NULL,
    size bigint NOT NULL,
    modified bigint NOT NULL
);
"""
PLAIN = "ALTER TABLE {s}.images ALTER COLUMN vector SET STORAGE PLAIN"
PLAIN_UP_TO = 3_000  # numbers: 6 kB of a page's 8

# Vectors have length 1, so the inner product is the cosine, and the index need not measure lengths to know it.
INDEXES = {
    "images_by_digest": "{s}.images USING btree (digest, id)",
    "images_by_label": "{s}.images USING btree (label, id)",
    "images_by_metadata": "{s}.images USING gin (metadata jsonb_path_ops)",
    GRAPH: "{s}.images USING hnsw (vector {v}.halfvec_ip_ops) WITH (m = 16, ef_construction = 128)",
}


@dataclass(frozen=True)
class Names:
    """Fills the names of a gallery's schema, `{s}`, and pgvector's, `{v}`, into SQL."""

    schema: str
    vector: str

    def __call__(self, template: str, **more: sql.Composable) -> sql.Composed:
        """SQL with all names written out."""
        # Templates are written in these modules; what comes from outside goes in as identifiers and parameters.
        return sql.SQL(template).format(s=sql.Identifier(self.schema), v=sql.Identifier(self.vector), **more)

    def table(self, name: str) -> str:
        """A table's name as PostgreSQL's functions take it."""
        return sql.Identifier(self.schema, name).as_string(None)


def checked_name(name: str) -> str:
    """A gallery's name, which becomes a schema's.

    Raises:
        InputError: it cannot be one.
    """
    plain = name.isprintable() and "%" not in name and not name.lower().startswith("pg_") and name.strip() == name
    if not plain or not 0 < len(name.encode()) <= NAME_BYTES:
        raise InputError(
            f"{name!r} cannot be the name of a gallery in PostgreSQL.",
            f"Choose one of at most {NAME_BYTES} bytes without % that does not begin with pg_.",
        )
    return name


def indexes_of(dim: int) -> list[str]:
    """Names of the indexes that vectors of this dimension have."""
    return [name for name in INDEXES if name != GRAPH or dim <= INDEXED]


def create(link: Link, name: str, about: About) -> None:
    """Make the tables of a new gallery, all or none, and pgvector in the database where it is missing and may be made.

    Raises:
        InputError: there is something of this name; vectors that are too long; no pgvector, or no right to make it.
    """
    if not 1 <= about.dim <= LONGEST:
        raise InputError(
            f"{link.place}: vectors of {about.dim} numbers cannot be kept.",
            f"Use a model of 1 to {LONGEST:,} dimensions.",
        )

    def work(db: psycopg.Connection[Any]) -> None:
        if link.extension is None:
            _make_extension(link, db)
        names = names_of(link, name)
        try:
            db.execute(names(TABLES, dim=sql.Literal(about.dim)))
        except errors.DuplicateSchema:
            raise InputError(
                f"{link.place}: there is a schema of this name.", "Choose another name, or drop the schema."
            ) from None
        if about.dim <= PLAIN_UP_TO:
            db.execute(names(PLAIN))
        for index in indexes_of(about.dim):
            db.execute(names(f"CREATE INDEX {index} ON {INDEXES[index]}"))
        db.execute(names("INSERT INTO {s}.gallery VALUES (true, %s, %s)"), (FORMAT, json.dumps(asdict(about))))

    link.writing(work)


def names_of(link: Link, name: str) -> Names:
    """The names of a gallery in the database that a link leads to.

    Raises:
        InputError: it has no pgvector.
    """
    if link.extension is None:
        raise link.no_extension()
    return Names(name, link.extension.schema)


def read_about(link: Link, name: str) -> About:
    """What a gallery was made with. From then on the link takes no other gallery for it.

    Raises:
        InputError: there is none of this name, it is of a newer format, or it may not be read.
    """

    def work(db: psycopg.Connection[Any]) -> tuple[int, dict[str, Any]]:
        known = [found[0] for found in db.execute(GALLERIES)]
        if name not in known:
            raise InputError(
                f"{link.place}: there is no gallery '{name}' in this database.{nearest(name, known)}",
                "Make one with: lookalike gallery create",
            )
        found = db.execute(sql.SQL("SELECT format, about FROM {}.gallery").format(sql.Identifier(name))).fetchone()
        if found is None:
            raise InputError(f"{link.place}: its table 'gallery' is empty.", "Restore a backup.")
        link.hold(db)
        return int(found[0]), dict(found[1])

    format, about = link.reading(work)
    if format > FORMAT:
        raise InputError(
            f"{link.place}: this gallery has format {format}, and this version of lookalike knows {FORMAT}.",
            "Upgrade lookalike: pip install --upgrade lookalike",
        )
    try:
        return About(**about)
    except TypeError:
        raise InputError(
            f"{link.place}: what the gallery was made with is not readable.", "Restore a backup of the table 'gallery'."
        ) from None


GALLERIES = """
SELECT n.nspname FROM pg_catalog.pg_namespace n
WHERE (
    SELECT count(*) FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relkind = 'r'
    AND c.relname IN ('gallery', 'images', 'thumbnails', 'rejected')
) = 4
"""


def _make_extension(link: Link, db: psycopg.Connection[Any]) -> None:
    try:
        db.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except (errors.InsufficientPrivilege, errors.FeatureNotSupported, errors.UndefinedFile):
        raise link.no_extension() from None
    link.learn(db)
