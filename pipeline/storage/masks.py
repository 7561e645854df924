"""Accepted masks: immutable versions, and which of them are current. Written by `click_log` and by imports.

Current is the mask of an accepted instance of a submitted session (or an import) that no other such session replaced:
an instance opened from it and then accepted or deleted.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, insert, or_, select
from sqlalchemy.orm import aliased

from pipeline.storage.numbers import next_number
from pipeline.storage.sql import fields, one, require_id
from pipeline.storage.tallies import add_imported, tallies
from schemas.catalogue import MaskRecord
from schemas.columns import db_now
from schemas.errors import NotFoundError
from schemas.tables import Annotator, Image, Instance, MaskRow, Session, SessionState


def is_current() -> ColumnElement[bool]:
    """The condition on `instances` outer-joined with `sessions`."""
    done = or_(Instance.session_id.is_(None), Session.state == "submitted")
    return and_(Instance.state == "accepted", done, ~is_replaced("submitted"))


def is_proposed() -> ColumnElement[bool]:
    """The condition, on the same join, for imported masks that nobody has accepted or deleted yet."""
    waits = and_(Instance.session_id.is_(None), Instance.state == "open", Instance.mask_id.is_not(None))
    return and_(waits, ~is_replaced("submitted"))


def is_replaced(*sessions: SessionState) -> ColumnElement[bool]:
    """The condition on `instances`: its mask was accepted anew or deleted in a session of one of these states."""
    later, its_session = aliased(Instance), aliased(Session)
    return exists(
        select(later.id)
        .join(its_session, its_session.id == later.session_id)
        .where(
            later.opened_mask_id == Instance.mask_id,
            later.state.in_(("accepted", "deleted")),
            its_session.state.in_(sessions),
        )
    )


def get_mask(conn: Connection, mask_id: str) -> MaskRecord:
    """A mask version.

    Raises:
        NotFoundError: There is none.
    """
    row = one(conn, mask_query().where(MaskRow.id == mask_id))
    if row is None:
        raise NotFoundError(f"There is no mask {mask_id!r}.")
    return mask_record(row)


def current_masks(
    conn: Connection, campaign_id: str, *, image_id: str | None = None, after: int = 0, limit: int | None = None
) -> list[MaskRecord]:
    """Current masks numbered above `after`, by number."""
    query = _with_instance(campaign_id).where(MaskRow.number > after, is_current())
    if image_id is not None:
        query = query.where(MaskRow.image_id == image_id)
    return [mask_record(row) for row in conn.execute(query.order_by(MaskRow.number).limit(limit))]


def proposed_masks(
    conn: Connection, campaign_id: str, image_id: str, *, after: int = 0, limit: int | None = None
) -> list[MaskRecord]:
    """Proposals for an image numbered above `after`, by number: they count once somebody has accepted them."""
    query = _with_instance(campaign_id).where(MaskRow.image_id == image_id, MaskRow.number > after, is_proposed())
    return [mask_record(row) for row in conn.execute(query.order_by(MaskRow.number).limit(limit))]


def count_imported(conn: Connection, campaign_id: str) -> int:
    """How many imported masks of a campaign count and were neither corrected nor deleted."""
    return tallies(conn, campaign_id, "imported").get("", 0)


def count_proposals(conn: Connection, campaign_id: str) -> int:
    """How many proposals of a campaign nobody has accepted or deleted yet."""
    return tallies(conn, campaign_id, "proposal").get("", 0)


def known_masks(conn: Connection, mask_ids: Sequence[str]) -> set[str]:
    """Which of these ids are stored masks'."""
    return set(conn.execute(select(MaskRow.id).where(MaskRow.id.in_(mask_ids))).scalars())


def _with_instance(campaign_id: str) -> Select[Any]:
    return (
        mask_query()
        .join(Instance, Instance.mask_id == MaskRow.id)
        .outerjoin(Session, Session.id == Instance.session_id)
        .where(MaskRow.campaign_id == campaign_id)
    )


def session_masks(conn: Connection, session_id: str, after: int = 0, *, limit: int | None = None) -> list[MaskRecord]:
    """Every mask that a session accepted, numbered above `after`, by number."""
    query = mask_query().where(MaskRow.session_id == session_id, MaskRow.number > after)
    query = query.order_by(MaskRow.number).limit(limit)
    return [mask_record(row) for row in conn.execute(query)]


def import_masks(
    conn: Connection,
    rows: Sequence[Mapping[str, Any]],
    *,
    is_trusted: bool = True,
    model_digest: str | None = None,
    adapter_digest: str | None = None,
) -> int:
    """Store masks of one campaign that came from a file, or from the model by itself; those that are there stay.

    Args:
        rows: Of each `mask_id`, `instance_id`, `image_id`, `category_number`, `rle`, `mask_sha256`, `area`, `bbox`, and
            `score`: the IoU that its maker states, in [0, 1], or None. With `unsure` it is flagged.
        is_trusted: They count as they are; else they are proposals, which count once somebody has accepted them.
        model_digest: Of the model that made them, for prelabels.
        adapter_digest: Likewise, of the adapter over it.

    Returns:
        How many are new.

    Raises:
        NotFoundError: There is no such image.
    """
    if not rows:
        return 0
    images = _images(conn, {row["image_id"] for row in rows})
    campaign_id = images[rows[0]["image_id"]].campaign_id
    number = next_number(conn, MaskRow, campaign_id)  # locks: nobody stores one of these between the look and the write
    known = known_masks(conn, [row["mask_id"] for row in rows])
    new = [row for row in rows if row["mask_id"] not in known]
    if not new:
        return 0
    made = {
        "campaign_id": campaign_id,
        "version": 1,
        "source": "import",
        "num_clicks": 0,
        "model_digest": model_digest,
        "adapter_digest": adapter_digest,
    }
    masks = [
        {
            **made,
            "id": require_id(row["mask_id"], "mask"),
            "number": number + place,
            "image_id": row["image_id"],
            "instance_id": require_id(row["instance_id"], "instance"),
            "category_number": row["category_number"],
            "height": row["rle"].size[0],
            "width": row["rle"].size[1],
            "rle_counts": row["rle"].counts,
            "mask_sha256": row["mask_sha256"],
            "area": row["area"],
            "bbox": list(row["bbox"]),
            "score": row["score"],
        }
        for place, row in enumerate(new)
    ]
    conn.execute(insert(MaskRow).values(created_at=db_now()), masks)
    state = "accepted" if is_trusted else "open"
    instances = [
        {
            "id": row["instance_id"],
            "campaign_id": campaign_id,
            "image_id": row["image_id"],
            "state": state,
            "category_number": row["category_number"],
            "unsure": row.get("unsure", False),
            "mask_id": row["mask_id"],
            "image_number": images[row["image_id"]].number,
        }
        for row in new
    ]
    conn.execute(insert(Instance), instances)
    add_imported(conn, campaign_id, len(new), is_trusted=is_trusted)
    return len(new)


def _images(conn: Connection, image_ids: Collection[str]) -> dict[str, Row[Any]]:
    """Campaign and number of each.

    Raises:
        NotFoundError: One is not there.
    """
    columns: tuple[Any, ...] = (Image.id, Image.campaign_id, Image.number)
    found = {row.id: row for row in conn.execute(select(*columns).where(Image.id.in_(image_ids)))}
    for image_id in image_ids:
        if image_id not in found:
            raise NotFoundError(f"There is no image {image_id!r}.")
    return found


def mask_query() -> Select[Any]:
    """Masks with what `mask_record` needs of their image and annotator."""
    return (
        select(MaskRow.__table__, Image.number.label("image_number"), Annotator.pseudonym)
        .join(Image, Image.id == MaskRow.image_id)
        .outerjoin(Annotator, Annotator.id == MaskRow.annotator_id)
    )


def mask_record(row: Row[Any]) -> MaskRecord:
    """The record of a row of `mask_query`."""
    return MaskRecord(**fields(row, MaskRecord))
