"""How far an export is from the one before it. Nothing here is changed any more: a later migration is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

_LABEL = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


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
