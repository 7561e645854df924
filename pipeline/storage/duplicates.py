"""Groups of near-duplicates: which images of them are labelled, and which wait for a first label."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select
from sqlalchemy.orm import aliased

from pipeline.storage.masks import is_current, is_proposed
from pipeline.storage.sql import batches
from schemas.tables import Image, Instance, MaskRow, Session, Task


@dataclass(frozen=True, slots=True)
class GroupMember:
    """An image of a group, with its perceptual hash (hex)."""

    id: str
    number: int
    group_key: str
    phash: str
    width: int
    height: int


_COLUMNS = (Image.id, Image.number, Image.group_key, Image.phash, Image.width, Image.height)


def unlabelled_in_groups(conn: Connection, campaign_id: str, *, after: int, limit: int) -> list[GroupMember]:
    """Images numbered above `after`, by number, that have near-duplicates, on which nobody has worked yet, that hold
    neither masks nor proposals and are not quarantined."""
    other = aliased(Image)
    is_like = and_(other.campaign_id == Image.campaign_id, other.group_key == Image.group_key, other.id != Image.id)
    query = (
        select(*_COLUMNS)
        .join(Task, and_(Task.campaign_id == campaign_id, Task.image_id == Image.id))
        .where(
            Image.campaign_id == campaign_id,
            Image.number > after,
            Image.quarantine_reason.is_(None),
            exists().where(is_like),
            ~_has_mask(or_(is_current(), is_proposed())),
            Task.state == "new",
            ~exists().where(Session.image_id == Image.id),
        )
    )
    return [GroupMember(*row) for row in conn.execute(query.order_by(Image.number).limit(limit))]


def labelled_in_groups(conn: Connection, campaign_id: str, group_keys: Collection[str]) -> Iterator[GroupMember]:
    """Images of these groups that have current masks."""
    for keys in batches(sorted(group_keys)):
        query = select(*_COLUMNS).where(Image.campaign_id == campaign_id, Image.group_key.in_(keys))
        yield from (GroupMember(*row) for row in conn.execute(query.where(_has_mask(is_current()))))


def _has_mask(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether an image holds a mask of which this is so."""
    masks = (
        select(MaskRow.id)
        .join(Instance, Instance.mask_id == MaskRow.id)
        .outerjoin(Session, Session.id == Instance.session_id)
        .where(MaskRow.image_id == Image.id, condition)
    )
    return masks.correlate(Image).exists()
