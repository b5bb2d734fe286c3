"""The first tables. Nothing here is changed any more: a later migration is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_LABEL = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "aliases",
        sa.Column("place", _LABEL, nullable=False),
        sa.Column("name", _LABEL, nullable=False),
        sa.Column("alias", _LABEL, nullable=False),
        sa.Column("digest", _LABEL, nullable=False),
        sa.PrimaryKeyConstraint("place", "name", "alias"),
    )
    op.create_index("aliases_by_alias", "aliases", ["alias", "name"], unique=False)
    op.create_index("aliases_by_version", "aliases", ["name", "digest"], unique=False)
    op.create_table(
        "records",
        sa.Column("id", _LABEL, nullable=False),
        sa.Column("outcome", _LABEL, nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint", _LABEL, nullable=False),
        sa.Column("name", _LABEL, nullable=True),
        sa.Column("digest", _LABEL, nullable=True),
        sa.Column("family", _LABEL, nullable=True),
        sa.Column("base_model", _LABEL, nullable=True),
        sa.Column("run_id", _LABEL, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("records_by_checkpoint", "records", ["checkpoint"], unique=False)
    op.create_index("records_by_outcome", "records", ["outcome", "started_at"], unique=False)
    op.create_index("records_by_run", "records", ["run_id"], unique=False)
    op.create_index("records_by_time", "records", ["started_at", "id"], unique=False)
    op.create_index("records_by_version", "records", ["name", "digest"], unique=False)
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", _LABEL, nullable=False),
        sa.Column("digest", _LABEL, nullable=False),
        sa.Column("outcome", _LABEL, nullable=False),
        sa.Column("family", _LABEL, nullable=False),
        sa.Column("base_model", _LABEL, nullable=False),
        sa.Column("base_revision", _LABEL, nullable=False),
        sa.Column("pipeline", _LABEL, nullable=False),
        sa.Column("source_name", _LABEL, nullable=False),
        sa.Column("source_digest", _LABEL, nullable=False),
        sa.Column("run_id", _LABEL, nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("told_at", sa.BigInteger(), nullable=False),
        sa.Column("told_by", _LABEL, nullable=False),
        sa.Column("recorded", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "digest", name="one_version"),
    )
    op.create_index("versions_by_base", "versions", ["base_model", "created_at"], unique=False)
    op.create_index("versions_by_digest", "versions", ["digest"], unique=False)
    op.create_index("versions_by_family", "versions", ["family", "created_at"], unique=False)
    op.create_index("versions_by_finish", "versions", ["finished_at"], unique=False)
    op.create_index("versions_by_name", "versions", ["name", "created_at"], unique=False)
    op.create_index("versions_by_run", "versions", ["run_id"], unique=False)
    op.create_index("versions_by_size", "versions", ["size"], unique=False)
    op.create_index("versions_by_source", "versions", ["source_digest"], unique=False)
    op.create_index("versions_by_source_name", "versions", ["source_name"], unique=False)
    op.create_index("versions_by_time", "versions", ["created_at", "name", "digest"], unique=False)
    op.create_table(
        "components",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("component", _LABEL, nullable=False),
        sa.Column("adapter_type", _LABEL, nullable=False),
        sa.Column("ranks", sa.Text(), nullable=False),
        sa.Column("alphas", sa.Text(), nullable=False),
        sa.Column("dtypes", sa.Text(), nullable=False),
        sa.Column("modules", sa.BigInteger(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version", "number"),
    )
    op.create_table(
        "edges",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("kind", _LABEL, nullable=False),
        sa.Column("parent", _LABEL, nullable=False),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version", "kind", "parent"),
    )
    op.create_index("edges_by_parent", "edges", ["parent"], unique=False)
    op.create_table(
        "files",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("path", _LABEL, nullable=False),
        sa.Column("role", _LABEL, nullable=False),
        sa.Column("layout", _LABEL, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", _LABEL, nullable=False),
        sa.Column("tensors_sha256", _LABEL, nullable=True),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version", "number"),
    )
    op.create_index("files_by_sha256", "files", ["sha256"], unique=False)
    op.create_index("files_by_tensors", "files", ["tensors_sha256"], unique=False)
    op.create_table(
        "manifests",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_table(
        "places",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("place", _LABEL, nullable=False),
        sa.Column("state", _LABEL, nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", _LABEL, nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.Column("recorded", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version", "place"),
    )
    op.create_index("places_by_place", "places", ["place"], unique=False)
    op.create_table(
        "record_documents",
        sa.Column("record", _LABEL, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["record"], ["records.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("record"),
    )


def downgrade() -> None:
    """To the one before."""
    op.drop_table("record_documents")
    op.drop_index("places_by_place", table_name="places")
    op.drop_table("places")
    op.drop_table("manifests")
    op.drop_index("files_by_tensors", table_name="files")
    op.drop_index("files_by_sha256", table_name="files")
    op.drop_table("files")
    op.drop_index("edges_by_parent", table_name="edges")
    op.drop_table("edges")
    op.drop_table("components")
    op.drop_index("versions_by_time", table_name="versions")
    op.drop_index("versions_by_source_name", table_name="versions")
    op.drop_index("versions_by_source", table_name="versions")
    op.drop_index("versions_by_size", table_name="versions")
    op.drop_index("versions_by_run", table_name="versions")
    op.drop_index("versions_by_name", table_name="versions")
    op.drop_index("versions_by_finish", table_name="versions")
    op.drop_index("versions_by_family", table_name="versions")
    op.drop_index("versions_by_digest", table_name="versions")
    op.drop_index("versions_by_base", table_name="versions")
    op.drop_table("versions")
    op.drop_index("records_by_version", table_name="records")
    op.drop_index("records_by_time", table_name="records")
    op.drop_index("records_by_run", table_name="records")
    op.drop_index("records_by_outcome", table_name="records")
    op.drop_index("records_by_checkpoint", table_name="records")
    op.drop_table("records")
    op.drop_index("aliases_by_version", table_name="aliases")
    op.drop_index("aliases_by_alias", table_name="aliases")
    op.drop_table("aliases")
