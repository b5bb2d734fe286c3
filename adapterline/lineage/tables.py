"""The tables of the index. Whatever they hold is said in records and manifests, and is read from there again.

A version is what one bundle is under one name. Manifests and records as a whole have tables of their own, so that
lists read narrow rows.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

#: The migration that makes the tables as they are here.
HEAD: Final = "0003"
#: Characters by which text is found. PostgreSQL indexes rows of 2704 bytes at most, and a character may have four.
COMPARED: Final = 600

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LARGEST = 2**53  # what every reader of JSON takes, and of which a thousand can be summed in eight bytes


class Moment(TypeDecorator[datetime]):
    """A time as microseconds since 1970: exact, in order, and the same in every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """See TypeDecorator."""
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """In UTC; what is before the year 1 or after 9999 there is cut to them."""
        if value is None:
            return None
        try:
            return _EPOCH + value * _MICROSECOND
        except OverflowError:
            return (datetime.max if value > 0 else datetime.min).replace(tzinfo=UTC)


class Count(TypeDecorator[int]):
    """A number that databases can hold. What is larger is nobody's size or count; the manifest has it whole."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """See TypeDecorator."""
        return None if value is None else max(-_LARGEST, min(value, _LARGEST))


class Label(TypeDecorator[str]):
    """Text that is searched and sorted, by code point; of it the first `COMPARED` characters.

    PostgreSQL keeps no U+0000, so that U+FFFD stands for it everywhere.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """See TypeDecorator."""
        return dialect.type_descriptor(Text(collation="C") if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """See TypeDecorator."""
        return None if value is None else value[:COMPARED].replace("\0", "\N{REPLACEMENT CHARACTER}")


metadata = MetaData()

records = Table(
    "records",
    metadata,
    Column("id", Label, primary_key=True),
    Column("outcome", Label, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment, nullable=False),
    Column("checkpoint", Label, nullable=False),
    Column("name", Label),
    Column("digest", Label),  # of the version that the run made or found
    Column("family", Label),
    Column("base_model", Label),
    Column("run_id", Label),
    Column("error_type", Label),
    Index("records_by_time", "started_at", "id"),
    Index("records_by_outcome", "outcome", "started_at", "id"),
    # What is counted of a time is in it: the rows themselves are not read.
    Index("records_by_end", "outcome", "ended_at", "error_type", "started_at"),
    Index("records_by_version", "name", "digest"),
    Index("records_by_run", "run_id"),
    Index("records_by_checkpoint", "checkpoint"),
)

#: The JSON of a record, without the manifest where a version has it.
record_documents = Table(
    "record_documents",
    metadata,
    Column("record", Label, ForeignKey("records.id", ondelete="CASCADE"), primary_key=True),
    Column("body", Text, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Label, nullable=False),
    Column("digest", Label, nullable=False),
    Column("outcome", Label, nullable=False),  # exported, or validated alone
    Column("family", Label, nullable=False),
    Column("base_model", Label, nullable=False),
    Column("base_revision", Label, nullable=False),
    Column("pipeline", Label, nullable=False),
    Column("source_name", Label, nullable=False),
    Column("source_digest", Label, nullable=False),
    Column("run_id", Label),
    Column("step", Count),
    Column("finished_at", Moment),
    Column("created_at", Moment, nullable=False),
    Column("size", Count, nullable=False),
    # Who told the manifest that counts: a record, at the time when it began, or a place.
    Column("told_at", Moment, nullable=False),
    Column("told_by", Label, nullable=False),
    Column("recorded", Integer, nullable=False),
    UniqueConstraint("name", "digest", name="one_version"),
    Index("versions_by_time", "created_at", "name", "digest"),
    Index("versions_by_name", "name", "created_at"),
    Index("versions_by_digest", "digest"),
    Index("versions_by_family", "family", "created_at", "name", "digest"),
    Index("versions_by_base", "base_model", "created_at", "name", "digest"),
    Index("versions_by_run", "run_id"),
    Index("versions_by_source", "source_digest"),
    Index("versions_by_source_name", "source_name"),
    Index("versions_by_finish", "finished_at"),
    Index("versions_by_size", "size", "created_at", "name", "digest"),
    Index("versions_by_outcome", "outcome", "created_at", "size"),
)


def _version(**options: Any) -> Column[int]:
    return Column("version", Integer, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True, **options)


#: What parts of words are looked for in: narrow, because no index helps and each row is read.
searches = Table("searches", metadata, _version(autoincrement=False), Column("text", Text, nullable=False))

manifests = Table("manifests", metadata, _version(autoincrement=False), Column("body", Text, nullable=False))

files = Table(
    "files",
    metadata,
    _version(),
    Column("number", Integer, primary_key=True),
    Column("path", Label, nullable=False),
    Column("role", Label, nullable=False),
    Column("layout", Label, nullable=False),
    Column("size", Count, nullable=False),
    Column("sha256", Label, nullable=False),
    Column("tensors_sha256", Label),
    Index("files_by_sha256", "sha256"),
    Index("files_by_tensors", "tensors_sha256"),
)

#: `ranks`, `alphas` and `dtypes` are JSON: one, or every one that occurs.
components = Table(
    "components",
    metadata,
    _version(),
    Column("number", Integer, primary_key=True),
    Column("component", Label, nullable=False),
    Column("adapter_type", Label, nullable=False),
    Column("ranks", Text, nullable=False),
    Column("alphas", Text, nullable=False),
    Column("dtypes", Text, nullable=False),
    Column("modules", Count, nullable=False),
    Column("parameters", Count, nullable=False),
)

places = Table(
    "places",
    metadata,
    _version(),
    Column("place", Label, primary_key=True),
    Column("state", Label, nullable=False),  # published, or proposed
    Column("location", Text, nullable=False),
    Column("manifest_sha256", Label, nullable=False),
    Column("published_at", Moment, nullable=False),
    Column("recorded", Integer, nullable=False),
    Index("places_by_place", "place"),
)

#: How far each component is from what `latest` was before, as the first record of the version that tells it says.
drifts = Table(
    "drifts",
    metadata,
    _version(),
    Column("number", Integer, primary_key=True),
    Column("component", Label, nullable=False),
    Column("before", Label, nullable=False),  # the digest of what was the latest
    Column("norm", Float(53), nullable=False),
    Column("norm_before", Float(53), nullable=False),
    Column("cosine", Float(53)),
    Column("told_at", Moment, nullable=False),
    Column("told_by", Label, nullable=False),
)

#: `body` is the record of the sweep, as JSON.
sweeps = Table(
    "sweeps",
    metadata,
    Column("id", Label, primary_key=True),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment, nullable=False),
    Column("body", Text, nullable=False),
    Index("sweeps_by_time", "started_at", "id"),
)

#: What an alias points to need not be a version that is known here.
aliases = Table(
    "aliases",
    metadata,
    Column("place", Label, primary_key=True),
    Column("name", Label, primary_key=True),
    Column("alias", Label, primary_key=True),
    Column("digest", Label, nullable=False),
    Index("aliases_by_version", "name", "digest"),
    Index("aliases_by_alias", "alias", "name"),
)

#: To what training went on from (a digest or a run), and to the version that came before under the name.
edges = Table(
    "edges",
    metadata,
    _version(),
    Column("kind", Label, primary_key=True),
    Column("parent", Label, primary_key=True),
    Index("edges_by_parent", "parent"),
)
