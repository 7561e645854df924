"""Masks know what the model thought of them, snapshots whether the annotator was sure, and the unsure are found."""

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels = None
depends_on = None

_ITEMS, _INDEX = "snapshot_items", "ix_snapshot_items_snapshot"
_ENTRY = ["snapshot_id", "image_id", "mask_id", "category_number", "unsure"]


def upgrade() -> None:
    """Add the columns; what is there has no score, and was sure in older snapshots, which did not ask."""
    op.add_column("masks", sa.Column("score", sa.Float(), nullable=True))
    op.add_column(_ITEMS, sa.Column("unsure", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.drop_index(_INDEX, _ITEMS)
    op.create_index(_INDEX, _ITEMS, _ENTRY, unique=False)
    only = sa.text("unsure")
    op.create_index(
        "ix_instances_unsure",
        "instances",
        ["campaign_id", "image_number"],
        unique=False,
        sqlite_where=only,
        postgresql_where=only,
    )
