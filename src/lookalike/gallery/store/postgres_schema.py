"""The tables of a gallery in PostgreSQL: one schema of the gallery's name, and what is in it.

    gallery      one row: the format, and what the gallery was made with
    images       a picture, with its vector; `checksum` is of the vector
    thumbnails   its small JPEG
    rejected     files that could not be read

Every name is written out with its schema, pgvector's types and operators too: no search path can change what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lookalike.errors import InputError, nearest
from lookalike.gallery.store.base import Filter, GalleryInfo, Value
from lookalike.gallery.store.postgres_connection import Jsonb, Link, errors, psycopg, sql
from lookalike.gallery.store.sqlite_schema import OWN, tag, texts_of, values_of

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


def create(link: Link, name: str, about: GalleryInfo) -> None:
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


def read_about(link: Link, name: str) -> GalleryInfo:
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
        return GalleryInfo(**about)
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


# Filters on labels, paths and metadata as SQL, over the tables of `pg_schema.py`, and metadata as JSON.

INDEXED_VALUES = 20  # of a key, up to which the index is asked


Clause = tuple[sql.Composable, list[Any]]  # a condition on `images`, with its parameters


def jsonb(metadata: Mapping[str, Value]) -> Jsonb:
    """Metadata as they are kept.

    Raises:
        InputError: a value that cannot be kept.
    """
    items = ", ".join(f"{json.dumps(str(key), ensure_ascii=False)}: {_text(value)}" for key, value in metadata.items())
    return Jsonb(f"{{{items}}}", dumps=str)


def clause(filter: Filter | None) -> Clause:
    """The condition that all of `where` hold; TRUE where there is none.

    Raises:
        InputError: as `values_of`.
    """
    conditions: list[sql.Composable] = []
    parameters: list[Any] = []
    for key, values in values_of(filter).items():
        condition, own = _own(key, values) if key in OWN else _of_metadata(key, values)
        conditions.append(condition)
        parameters += own
    return (sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("TRUE")), parameters


def _own(column: str, values: Sequence[Value]) -> Clause:
    """A label or path is text: a number or truth value equals none."""
    texts = texts_of(column, values)
    either = "({column} = ANY(%s::text[]) OR {column} IS NULL)" if None in values else "{column} = ANY(%s::text[])"
    return sql.SQL(either).format(column=sql.Identifier(column)), [texts]


def _of_metadata(key: str, values: Sequence[Value]) -> Clause:
    """The index knows `@>`. For each row that it finds, and for every row where it is not used, the server unpacks the
    metadata as often as there are values, and gives the memory back after the row: some GB for thousands of values and
    metadata of some 100 kB. Of many values the key's is taken out once and looked up among them.
    """
    given = [value for value in values if value is not None]
    parameters: list[Any]
    if len(given) <= INDEXED_VALUES:
        condition, parameters = "metadata @> ANY(%s::jsonb[])", [[jsonb({key: value}) for value in given]]
    else:
        condition, parameters = (
            "metadata -> %s::text = ANY(%s::jsonb[])",
            [key, [Jsonb(value, _text) for value in given]],
        )
    if None not in values:
        return sql.SQL(condition), parameters
    return sql.SQL(f"({condition} OR metadata ->> %s IS NULL)"), [*parameters, key]


def _text(value: Value) -> str:
    """JSON of a value. A whole float keeps a decimal point, so that it comes back as the float that it was."""
    text = tag(value)
    if isinstance(value, float):
        return format(value, ".1f") if value.is_integer() else repr(value)
    return text
