"""Imported masks that count are counted, as those of annotators are."""

from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels = None
depends_on = None

_REPLACED = """EXISTS (
    SELECT 1 FROM instances l JOIN sessions ls ON ls.id = l.session_id
    WHERE l.opened_mask_id = i.mask_id AND l.state IN ('accepted', 'deleted') AND ls.state = 'submitted'
)"""


def upgrade() -> None:
    """Count those that are there. Anew: who comes from before 0004 has them counted there already."""
    op.execute("DELETE FROM tallies WHERE kind = 'imported'")
    op.execute(
        "INSERT INTO tallies (campaign_id, kind, key, shard, amount) "
        "SELECT i.campaign_id, 'imported', '', 0, count(*) FROM instances i JOIN masks m ON m.id = i.mask_id "
        f"WHERE i.state = 'accepted' AND i.session_id IS NULL AND NOT {_REPLACED} GROUP BY i.campaign_id"
    )
