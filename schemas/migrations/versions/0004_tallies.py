"""Counts kept beside what they count, and the indexes of what was still searched through."""

import sqlalchemy as sa
from alembic import op

from schemas.tallies import count_all, sources, triggers

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables, columns and indexes, count what is there, then let triggers count on."""
    op.create_table(
        "tallies",
        sa.Column("campaign_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=16), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "kind", "key", "shard", name=op.f("pk_tallies")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "work_tallies",
        sa.Column("campaign_id", sa.String(length=36), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("annotator_id", sa.String(length=36), nullable=False),
        sa.Column("adapter_digest", sa.String(length=64), nullable=False),
        sa.Column("category_number", sa.Integer(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("masks", sa.BigInteger(), nullable=False),
        sa.Column("clicks", sa.BigInteger(), nullable=False),
        sa.Column("micros", sa.BigInteger(), nullable=False),
        sa.Column("timed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "campaign_id", "slot", "annotator_id", "adapter_digest", "category_number", "shard",
            name=op.f("pk_work_tallies"),
        ),
        sqlite_with_rowid=False,
    )  # fmt: skip
    op.create_table(
        "latency_tallies",
        sa.Column("campaign_id", sa.String(length=36), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("bin", sa.Integer(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("clicks", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("campaign_id", "slot", "bin", "shard", name=op.f("pk_latency_tallies")),
        sqlite_with_rowid=False,
    )
    _index("images", "quarantined", ["campaign_id", "number"], "quarantine_reason IS NOT NULL")
    _index("sources", "state", ["campaign_id", "state"])
    _index("tasks", "browsed", ["campaign_id", "state", "position"])
    _index("tasks", "leased", ["campaign_id"], "state = 'leased'")
    _index("masks", "made", ["campaign_id", "created_at"], "source = 'annotator'")
    for name, counted in (("masks", "count(mask_id)"), ("images", "count(DISTINCT image_id)")):
        op.add_column("snapshots", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
        items = f"SELECT {counted} FROM snapshot_items WHERE snapshot_items.snapshot_id = snapshots.id"
        op.execute(f"UPDATE snapshots SET {name} = ({items})")
    dialect = op.get_bind().dialect.name
    for statement in (*count_all(dialect), *(one for table in sources() for one in triggers(table, dialect))):
        op.get_bind().exec_driver_sql(statement)


def _index(table: str, name: str, columns: list[str], where: str | None = None) -> None:
    only = None if where is None else sa.text(where)
    op.create_index(f"ix_{table}_{name}", table, columns, unique=False, sqlite_where=only, postgresql_where=only)
