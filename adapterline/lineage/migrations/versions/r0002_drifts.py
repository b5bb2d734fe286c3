"""How far an export is from the one before it, a narrow table to search, and whole orders in indexes.

Nothing here is changed any more: a later migration is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

_LABEL = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

_VERSION = ["created_at", "name", "digest"]
_ORDERS = (
    ("records_by_outcome", "records", ["outcome", "started_at", "id"]),
    ("versions_by_family", "versions", ["family", *_VERSION]),
    ("versions_by_base", "versions", ["base_model", *_VERSION]),
    ("versions_by_size", "versions", ["size", *_VERSION]),
)


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "drifts",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("component", _LABEL, nullable=False),
        sa.Column("before", _LABEL, nullable=False),
        sa.Column("norm", sa.Float(53), nullable=False),
        sa.Column("norm_before", sa.Float(53), nullable=False),
        sa.Column("cosine", sa.Float(53), nullable=True),
        sa.Column("told_at", sa.BigInteger(), nullable=False),
        sa.Column("told_by", _LABEL, nullable=False),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version", "number"),
    )
    for name, table, columns in _ORDERS:
        op.drop_index(name, table)
        op.create_index(name, table, columns)
    searches = op.create_table(
        "searches",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version"),
    )
    names = ("name", "family", "base_model", "run_id", "source_name")
    versions = sa.table("versions", sa.column("id"), *map(sa.column, names))
    rows = op.get_bind().execute(sa.select(versions)).all()
    texts = [{"version": row.id, "text": "\n".join(text or "" for text in row[1:]).casefold()} for row in rows]
    if texts:
        op.bulk_insert(searches, texts)
