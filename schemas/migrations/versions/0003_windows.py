"""How an image's grey samples of more than 8 bits become pixels, where its campaign says so."""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; images there are have their own windows, as before."""
    op.add_column("images", sa.Column("window", sa.JSON(), nullable=True))
