"""Tombstones: what they name may be deleted from the append-only tables."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None

UNLESS = {
    "events": (
        "SELECT 1 FROM sessions JOIN purges ON purges.campaign_id = sessions.campaign_id "
        "AND coalesce(purges.image_id, sessions.image_id) = sessions.image_id "
        "WHERE sessions.id = OLD.session_id AND purges.state = 'running'"
    ),
    "masks": (
        "SELECT 1 FROM purges WHERE purges.campaign_id = OLD.campaign_id "
        "AND coalesce(purges.image_id, OLD.image_id) = OLD.image_id AND purges.state = 'running'"
    ),
}
REFUSE_DELETE = """
CREATE OR REPLACE FUNCTION clickloop_delete_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS ({unless}) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$
"""


def upgrade() -> None:
    """Add the tombstones and what purging needs, then let the triggers know of them."""
    op.create_table(
        "purges",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("campaign_id", sa.String(length=36), nullable=False),
        sa.Column("campaign_name", sa.String(length=200), nullable=False),
        sa.Column("image_id", sa.String(length=36), nullable=True),
        sa.Column("image_number", sa.Integer(), nullable=True),
        sa.Column("image_sha256", sa.String(length=64), nullable=True),
        sa.Column("mask_number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("purged_by", sa.String(length=200), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("snapshots", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("readmitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('running', 'done')", name=op.f("ck_purges_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_purges")),
    )
    op.create_index("ix_purges_campaign_image", "purges", ["campaign_id", "image_sha256"], unique=False)
    op.add_column("adapters", sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))
    for table in ("sources", "tasks", "instances"):
        op.create_index(f"ix_{table}_image_id", table, ["image_id"], unique=False)
    op.create_index("ix_masks_session_id", "masks", ["session_id"], unique=False)
    has_parent = sa.text("parent_id IS NOT NULL")
    op.create_index(
        "ix_masks_parent_id", "masks", ["parent_id"], unique=False, sqlite_where=has_parent, postgresql_where=has_parent
    )
    for table, unless in UNLESS.items():
        _let_purges_delete(table, unless, op.get_bind().dialect.name)


def _let_purges_delete(table: str, unless: str, dialect: str) -> None:
    if dialect == "sqlite":
        op.execute(f"DROP TRIGGER {table}_no_delete")
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} WHEN NOT EXISTS ({unless}) "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
        return
    op.execute(REFUSE_DELETE.format(table=table, unless=unless))
    op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE ON {table} FOR EACH ROW "
        "EXECUTE FUNCTION clickloop_append_only()"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} FOR EACH ROW "
        f"EXECUTE FUNCTION clickloop_delete_{table}()"
    )
