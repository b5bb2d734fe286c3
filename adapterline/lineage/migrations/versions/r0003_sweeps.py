"""Sweeps, what a failed run failed with, and indexes for what is counted by time.

Nothing here is changed any more: a later migration is.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

_LABEL = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_BATCH = 1000


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "sweeps",
        sa.Column("id", _LABEL, nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("sweeps_by_time", "sweeps", ["started_at", "id"], unique=False)
    op.add_column("records", sa.Column("error_type", _LABEL, nullable=True))
    _tell_errors(op.get_bind())
    op.create_index("records_by_end", "records", ["outcome", "ended_at", "error_type", "started_at"], unique=False)
    op.create_index("versions_by_outcome", "versions", ["outcome", "created_at", "size"], unique=False)


def _tell_errors(connection: sa.Connection) -> None:
    records = sa.table("records", sa.column("id"), sa.column("outcome"), sa.column("error_type"))
    documents = sa.table("record_documents", sa.column("record"), sa.column("body"))
    found = sa.select(documents.c.record, documents.c.body).join(records, records.c.id == documents.c.record)
    told = found.where(records.c.outcome.in_(("waiting", "refused", "failed")))
    set_ = sa.update(records).where(records.c.id == sa.bindparam("of")).values(error_type=sa.bindparam("said"))
    rows = [{"of": row.record, "said": json.loads(row.body)["error_type"]} for row in connection.execute(told)]
    for first in range(0, len(rows), _BATCH):
        connection.execute(set_, rows[first : first + _BATCH])
