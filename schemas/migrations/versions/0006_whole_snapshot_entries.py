"""The index of a snapshot's entries holds all that they say: two snapshots are compared without looking at the rows."""

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels = None
depends_on = None

_NAME, _TABLE = "ix_snapshot_items_snapshot", "snapshot_items"


def upgrade() -> None:
    """Build the wider index, which takes the narrow one's name and place."""
    op.drop_index(_NAME, _TABLE)
    op.create_index(_NAME, _TABLE, ["snapshot_id", "image_id", "mask_id", "category_number"], unique=False)
