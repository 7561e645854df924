"""A snapshot's entries name images and masks without foreign keys, which took half the time of taking a snapshot."""

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels = None
depends_on = None

_TABLE, _INDEX = "snapshot_items", "ix_snapshot_items_snapshot"
_COLUMNS = ("snapshot_id", "image_id", "mask_id", "category_number")


def upgrade() -> None:
    """Drop them; SQLite can't, so that it copies the table."""
    if op.get_bind().dialect.name == "postgresql":
        for name in ("fk_snapshot_items_image_id_images", "fk_snapshot_items_mask_id_masks"):
            op.drop_constraint(name, _TABLE, type_="foreignkey")
        return
    op.drop_index(_INDEX, _TABLE)
    op.rename_table(_TABLE, "old_items")
    op.create_table(
        _TABLE,
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("snapshot_id", sa.String(length=36), nullable=False),
        sa.Column("image_id", sa.String(length=36), nullable=False),
        sa.Column("mask_id", sa.String(length=36), nullable=True),
        sa.Column("category_number", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.id"], name=op.f("fk_snapshot_items_snapshot_id_snapshots")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshot_items")),
    )
    names = ", ".join(("id", *_COLUMNS))
    op.execute(f"INSERT INTO {_TABLE} ({names}) SELECT {names} FROM old_items ORDER BY id")
    op.drop_table("old_items")
    op.create_index(_INDEX, _TABLE, list(_COLUMNS), unique=False)
