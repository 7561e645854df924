"""Instances and sessions know their image's number: those of one category or annotator are read in its order."""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, fill them, then index them."""
    for table, key in (("sessions", "annotator_id"), ("instances", "category_number")):
        op.add_column(table, sa.Column("image_number", sa.Integer(), server_default="0", nullable=False))
        number = f"SELECT number FROM images WHERE images.id = {table}.image_id"
        op.execute(f"UPDATE {table} SET image_number = ({number})")
        op.create_index(f"ix_{table}_browsed", table, ["campaign_id", key, "image_number"], unique=False)
