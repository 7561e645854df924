"""Looking through a campaign's images with their current masks: filtered, a page at a time. Reads no file."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, func, select

from pipeline.masks.previews import preview_mask, preview_size
from pipeline.storage.masks import is_current
from pipeline.storage.tallies import tallies
from schemas.browsing import BrowsedImage, BrowsedMask, BrowsePage
from schemas.errors import NotFoundError
from schemas.masks import Rle
from schemas.tables import Annotator, Image, Instance, MaskRow, Session, Task

MAX_MASKS = 100
"""Masks of one image that are shown; their number is told anyway."""


@dataclass(frozen=True, slots=True)
class BrowseFilter:
    """Which images; None: all.

    Attributes:
        state: Of the image's task.
        category: Number of a category of which the image has a current mask.
        annotator_id: Who submitted or skipped it at some time.
    """

    state: str | None = None
    category: int | None = None
    annotator_id: str | None = None


def browse_images(
    conn: Connection,
    campaign_id: str,
    wanted: BrowseFilter,
    *,
    after: int = 0,
    limit: int = 24,
    preview: int = 320,
) -> BrowsePage:
    """One page of images numbered above `after`, by number.

    Args:
        conn: Read transaction.
        campaign_id: The campaign.
        wanted: Which images.
        after: Number of the last image of the page before.
        limit: Images of a page.
        preview: Longest side of the previews in pixels.
    """
    matching = _matching(campaign_id, wanted)
    count = _count(conn, campaign_id, wanted)
    place = Image.number if wanted.state is None else Task.position  # the same; as the index of the state has it
    page = matching.where(place > after).order_by(place).limit(limit + 1)
    rows = conn.execute(page).all()
    images = _with_masks(conn, rows[:limit], preview)
    return BrowsePage(count=count, next=images[-1].number if len(rows) > limit else None, results=images)


def browse_image(conn: Connection, campaign_id: str, image_id: str, *, preview: int = 1280) -> BrowsedImage:
    """One image; see `browse_images`.

    Raises:
        NotFoundError: The campaign has no such image.
    """
    row = conn.execute(_matching(campaign_id, BrowseFilter()).where(Image.id == image_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no image {image_id!r} in this campaign.")
    return _with_masks(conn, [row], preview)[0]


def _count(conn: Connection, campaign_id: str, wanted: BrowseFilter) -> int:
    """How many images match; without a look at them where their tasks tell."""
    if wanted.category is None and wanted.annotator_id is None:
        tasks = tallies(conn, campaign_id, "task")
        return sum(tasks.values()) if wanted.state is None else tasks.get(wanted.state, 0)
    matching = _matching(campaign_id, wanted).subquery()
    return int(conn.execute(select(func.count()).select_from(matching)).scalar_one())


def _matching(campaign_id: str, wanted: BrowseFilter) -> Select[Any]:
    columns: tuple[Any, ...] = (
        Image.id,
        Image.number,
        Image.file_name,
        Image.width,
        Image.height,
        Image.holdout,
        Task.state,
    )
    of_image = and_(Task.campaign_id == campaign_id, Task.image_id == Image.id)  # as its index has it
    query = select(*columns).join(Task, of_image).where(Image.campaign_id == campaign_id)
    if wanted.state is not None:
        query = query.where(Task.state == wanted.state)
    if wanted.category is not None:
        query = query.where(_has_mask(campaign_id, wanted.category))
    if wanted.annotator_id is not None:
        ended = exists(
            select(Session.id).where(
                Session.image_id == Image.id,
                Session.annotator_id == wanted.annotator_id,
                Session.state.in_(("submitted", "skipped")),
            )
        )
        query = query.where(ended)
    return query


def _has_mask(campaign_id: str, category: int) -> ColumnElement[bool]:
    current = (
        select(Instance.id)
        .outerjoin(Session, Session.id == Instance.session_id)
        .where(
            Instance.campaign_id == campaign_id,
            Instance.image_id == Image.id,
            Instance.category_number == category,
            is_current(),
        )
    )
    return exists(current.correlate(Image))


def _with_masks(conn: Connection, rows: Sequence[Row[Any]], preview: int) -> list[BrowsedImage]:
    place = func.row_number().over(partition_by=MaskRow.image_id, order_by=MaskRow.number)
    of_image = func.count().over(partition_by=MaskRow.image_id)
    current = (
        select(
            MaskRow.__table__,
            Instance.category_number.label("category_now"),
            Instance.unsure,
            Annotator.name.label("annotator"),
            place.label("place"),
            of_image.label("of_image"),
        )
        .join(Instance, Instance.mask_id == MaskRow.id)
        .outerjoin(Session, Session.id == Instance.session_id)
        .outerjoin(Annotator, Annotator.id == MaskRow.annotator_id)
        .where(MaskRow.image_id.in_([row.id for row in rows]), is_current())
    ).subquery()
    query = select(current).where(current.c.place <= MAX_MASKS).order_by(current.c.image_id, current.c.place)
    masks: dict[str, list[Row[Any]]] = defaultdict(list)
    for mask in conn.execute(query):
        masks[mask.image_id].append(mask)
    return [
        BrowsedImage(
            **row._mapping,
            preview_size=preview_size(row.height, row.width, preview),
            num_masks=masks[row.id][0].of_image if masks[row.id] else 0,
            masks=[_mask(mask, preview) for mask in masks[row.id]],
        )
        for row in rows
    ]


def _mask(row: Row[Any], preview: int) -> BrowsedMask:
    x, y, width, height = row.bbox
    return BrowsedMask(
        id=row.id,
        category_number=row.category_now,
        unsure=row.unsure,
        source=row.source,
        annotator=row.annotator,
        num_clicks=row.num_clicks,
        area=row.area,
        created_at=row.created_at,
        preview=preview_mask(Rle(size=(row.height, row.width), counts=row.rle_counts), (x, y, width, height), preview),
    )
