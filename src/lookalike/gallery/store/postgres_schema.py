"""The tables of a gallery in PostgreSQL, in a schema with the gallery's name.

    gallery      one row: the format, and what the gallery was created with
    images       the items, with their vectors; `checksum` is of the vector, `look` is the dhash
    thumbnails   their small JPEGs
    rejected     files that could not be added

All names in SQL, also of the types and operators of pgvector, include the schema, so that they do not depend on the
search path.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from lookalike.errors import InputError, nearest
from lookalike.gallery.store.base import GalleryInfo
from lookalike.gallery.store.postgres_connection import Link, errors, psycopg, sql

FORMAT = 1
MAX_DIM = 16_000  # numbers of a `halfvec`
MAX_INDEXED_DIM = 4_000  # numbers that pgvector can index; longer vectors are always compared one by one
MAX_NAME_BYTES = 63
VECTOR_INDEX = "images_by_vector"
NEXT_INDEX = f"{VECTOR_INDEX}_next"  # of the vectors of another model, until they replace the ones in use

# Text is compared by its bytes, so that a new locale of the server can neither reorder nor damage an index.
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


# A vector that fits into a page is stored beside the other columns: a scan need not look elsewhere.
PLAIN = "ALTER TABLE {s}.images ALTER COLUMN vector SET STORAGE PLAIN"
MAX_PLAIN_DIM = 3_000  # numbers: 6 kB of the 8 kB of a page

# Vectors have length 1, so the inner product is the cosine, and the index need not compute lengths.
INDEXES = {
    "images_by_digest": "{s}.images USING btree (digest, id)",
    "images_by_label": "{s}.images USING btree (label, id)",
    "images_by_metadata": "{s}.images USING gin (metadata jsonb_path_ops)",
    VECTOR_INDEX: "{s}.images USING hnsw (vector {v}.halfvec_ip_ops) WITH (m = 16, ef_construction = 128)",
}

# What `postgres_reembed` keeps of another model.
DROP_NEXT = """
ALTER TABLE {s}.images DROP COLUMN IF EXISTS vector_next, DROP COLUMN IF EXISTS checksum_next,
    DROP COLUMN IF EXISTS thumbnail_next
"""


@dataclass(frozen=True)
class Names:
    """Inserts the schema of a gallery, `{s}`, and that of pgvector, `{v}`, into SQL."""

    schema: str
    vector: str

    def __call__(self, template: str, **more: sql.Composable) -> sql.Composed:
        """Return SQL with all names. Templates are constants; other text is passed as identifiers and parameters."""
        return sql.SQL(template).format(s=sql.Identifier(self.schema), v=sql.Identifier(self.vector), **more)

    def table(self, name: str) -> str:
        """Return the name of a table as PostgreSQL's functions take it."""
        return sql.Identifier(self.schema, name).as_string(None)


def checked_name(name: str) -> str:
    """Return the name of a gallery, which is the name of its schema.

    Raises:
        InputError: a schema cannot have this name.
    """
    plain = name.isprintable() and "%" not in name and not name.lower().startswith("pg_") and name.strip() == name
    if not plain or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        raise InputError(
            f"a gallery in PostgreSQL cannot have the name {name!r}.",
            f"Choose a name of at most {MAX_NAME_BYTES} bytes without % that does not begin with pg_.",
        )
    return name


def indexes_of(dim: int) -> list[str]:
    """Return the names of the indexes that a gallery with vectors of this dimension has."""
    return [name for name in INDEXES if name != VECTOR_INDEX or dim <= MAX_INDEXED_DIM]


def create(link: Link, name: str, about: GalleryInfo) -> None:
    """Create the tables of a gallery, all or none; also the extension pgvector, if it is missing and this role may.

    Raises:
        InputError: the name is taken, the vectors are too long, or pgvector is missing.
    """
    if not 1 <= about.dim <= MAX_DIM:
        raise InputError(
            f"{link.location}: a gallery cannot store vectors of {about.dim} numbers.",
            f"Use a model of 1 to {MAX_DIM:,} dimensions.",
        )

    def work(db: psycopg.Connection[Any]) -> None:
        if link.extension is None:
            _create_extension(link, db)
        names = names_of(link, name)
        try:
            db.execute(names(TABLES, dim=sql.Literal(about.dim)))
        except errors.DuplicateSchema:
            raise InputError(
                f"{link.location}: there is a schema of this name.", "Choose another name, or drop the schema."
            ) from None
        if about.dim <= MAX_PLAIN_DIM:
            db.execute(names(PLAIN))
        for index in indexes_of(about.dim):
            db.execute(names(f"CREATE INDEX {index} ON {INDEXES[index]}"))
        db.execute(names("INSERT INTO {s}.gallery VALUES (true, %s, %s)"), (FORMAT, json.dumps(asdict(about))))

    link.writing(work)


def names_of(link: Link, name: str) -> Names:
    """Return the names for a gallery in the database of a connection.

    Raises:
        InputError: the database has no pgvector.
    """
    if link.extension is None:
        raise link.no_extension()
    return Names(name, link.extension.schema)


def read_about(link: Link, name: str) -> GalleryInfo:
    """Read what a gallery was created with. The link refuses another gallery of this name from then on.

    Raises:
        InputError: there is none of this name, it has a newer format, or this role may not read it.
    """

    def work(db: psycopg.Connection[Any]) -> tuple[int, dict[str, Any]]:
        known = [found[0] for found in db.execute(GALLERIES)]
        if name not in known:
            raise InputError(
                f"{link.location}: there is no gallery '{name}' in this database.{nearest(name, known)}",
                "Create one with: lookalike gallery create",
            )
        found = db.execute(sql.SQL("SELECT format, about FROM {}.gallery").format(sql.Identifier(name))).fetchone()
        if found is None:
            raise InputError(f"{link.location}: its table 'gallery' is empty.", "Restore a backup.")
        link.hold(db)
        return int(found[0]), dict(found[1])

    format, about = link.reading(work)
    if format > FORMAT:
        raise InputError(
            f"{link.location}: this gallery has format {format}, and this version of Lookalike reads up to {FORMAT}.",
            "Upgrade lookalike: pip install --upgrade lookalike",
        )
    try:
        return GalleryInfo.from_tree(about)
    except ValueError:
        raise InputError(
            f"{link.location}: its record of the model is damaged.", "Restore a backup of the table 'gallery'."
        ) from None


GALLERIES = """
SELECT n.nspname FROM pg_catalog.pg_namespace n
WHERE (
    SELECT count(*) FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relkind = 'r'
    AND c.relname IN ('gallery', 'images', 'thumbnails', 'rejected')
) = 4
"""


def _create_extension(link: Link, db: psycopg.Connection[Any]) -> None:
    try:
        db.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except (errors.InsufficientPrivilege, errors.FeatureNotSupported, errors.UndefinedFile):
        raise link.no_extension() from None
    link.prepare(db)
