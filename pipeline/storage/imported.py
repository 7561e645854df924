"""Imported masks that an import finds again: what it may still change of them, as long as nobody has worked on them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, update

from pipeline.storage.masks import is_replaced
from pipeline.storage.numbers import next_number
from pipeline.storage.sql import new_id
from pipeline.storage.tallies import counted
from schemas.columns import db_now
from schemas.tables import Instance, MaskRow, Task


def known_instances(conn: Connection, campaign_id: str, instance_ids: Sequence[str]) -> dict[str, Row[Any]]:
    """State and category number of the imported instances among these, by their id."""
    columns = Instance.id, Instance.state, Instance.category_number, Instance.campaign_id, Instance.session_id
    # Asked for campaign and session, too, SQLite looks through all of the campaign's instances.
    rows = conn.execute(_with_ids(instance_ids, *columns))
    return {row.id: row for row in rows if row.campaign_id == campaign_id and row.session_id is None}


def same_masks(conn: Connection, campaign_id: str, masks: Collection[tuple[str, str]]) -> list[Row[Any]]:
    """Imported instances by their masks.

    Args:
        conn: Any transaction.
        campaign_id: The campaign.
        masks: Image id and digest of each.

    Returns:
        id, state, category_number, image_id and mask_sha256 of each instance that was imported with one of these masks,
        oldest first; those of prelabels not among them.
    """
    image_ids, digests = ({mask[at] for mask in masks} for at in (0, 1))
    own = Instance.id, Instance.state, Instance.category_number
    columns: tuple[Any, ...] = (*own, Instance.image_id, MaskRow.mask_sha256)
    query: Select[Any] = select(*columns).join(MaskRow, MaskRow.instance_id == Instance.id)
    first = MaskRow.version == 1, MaskRow.source == "import", MaskRow.model_digest.is_(None)
    mine = Instance.campaign_id == campaign_id, Instance.session_id.is_(None)
    wanted = Instance.image_id.in_(image_ids), MaskRow.mask_sha256.in_(digests)  # by the index of the former
    found = conn.execute(query.where(*first, *mine, *wanted).order_by(MaskRow.number))
    return [row for row in found if (row.image_id, row.mask_sha256) in masks]


def revise_instances(
    conn: Connection, campaign_id: str, categories: Mapping[str, int | None], *, is_trusted: bool
) -> int:
    """Give imported instances their categories, and if they are trusted let those count that are proposals.

    A mask is never changed: one of another category is the instance's next version. Instances on whose image somebody
    works, or which somebody accepted, corrected or deleted, are left as they are. Waits for nobody's work.

    Args:
        conn: Write transaction that holds no lock of the campaign yet; nobody can claim the images until it ends.
        campaign_id: The campaign.
        categories: Number, or None, by the id of `known_instances`: few.
        is_trusted: See above.

    Returns:
        How many instances were free to be revised.
    """
    imported = _with_ids(list(categories), Instance.id, Instance.image_id, Instance.mask_id)
    tasks = select(Task.image_id).where(
        Task.campaign_id == campaign_id,
        Task.image_id.in_(_with_ids(list(categories), Instance.image_id)),
        Task.state != "leased",
    )
    # The tasks are locked before the campaign, as an accept locks them.
    images = conn.execute(tasks.with_for_update(key_share=True, skip_locked=True)).scalars().all()
    rows = conn.execute(imported.where(Instance.image_id.in_(images), ~is_replaced("open", "lost", "submitted"))).all()
    if not rows:
        return 0
    with counted(conn, campaign_id, [row.image_id for row in rows]):
        for row in rows:
            mask_id = _categorised(conn, row.mask_id, categories[row.id])
            values = {"mask_id": mask_id, "category_number": categories[row.id]}
            accepted = {"state": "accepted"} if is_trusted else {}
            conn.execute(update(Instance).where(Instance.id == row.id).values(**values, **accepted))
    return len(rows)


def _with_ids(instance_ids: Sequence[str], *columns: Any) -> Select[Any]:
    return select(*columns).where(Instance.id.in_(instance_ids))


def _categorised(conn: Connection, mask_id: str, category_number: int | None) -> str:
    """The mask if it has this category, else the next version of it that has."""
    mask = conn.execute(select(MaskRow.__table__).where(MaskRow.id == mask_id)).one()
    if mask.category_number == category_number:
        return mask_id
    made = {
        "id": new_id(),
        "number": next_number(conn, MaskRow, mask.campaign_id),
        "version": mask.version + 1,
        "parent_id": mask.id,
        "category_number": category_number,
        "created_at": db_now(),
    }
    conn.execute(insert(MaskRow).values({**mask._mapping, **made}))
    return str(made["id"])
