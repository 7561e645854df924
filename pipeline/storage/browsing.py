"""Looking through a campaign's images with their current masks: filtered, a page at a time. Reads no file."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, func, literal_column, select
from sqlalchemy.orm import aliased

from pipeline.masks.previews import preview_mask, preview_size
from pipeline.storage.masks import is_current
from pipeline.storage.tallies import tallies
from schemas.browsing import BrowsedImage, BrowsedMask, BrowsePage
from schemas.errors import NotFoundError
from schemas.masks import Rle
from schemas.tables import Annotator, EventRow, Image, Instance, MaskRow, Session, Task

MAX_MASKS = 100
"""Masks of one image that are shown; their number is told anyway."""
COUNTED = 1_000
"""Images of a category or an annotator are counted up to here: counting each would take as long as there are images."""


@dataclass(frozen=True, slots=True)
class BrowseFilter:
    """Which images; None: all.

    Attributes:
        state: Of the image's task.
        category: Number of a category of which the image has a current mask.
        annotator_id: Who submitted or skipped it at some time.
        unsure: True: it has a current mask that its annotator flagged as unsure.
    """

    state: str | None = None
    category: int | None = None
    annotator_id: str | None = None
    unsure: bool = False


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
    matching = _numbers(conn, campaign_id, wanted)
    count, is_exact = _count(conn, campaign_id, wanted, matching)
    number = matching.selected_columns.number
    page = conn.execute(matching.where(number > after).order_by(number).limit(limit + 1)).scalars().all()
    rows = conn.execute(_images(campaign_id).where(Image.number.in_(page[:limit])).order_by(Image.number)).all()
    return BrowsePage(
        count=count,
        is_exact=is_exact,
        next=page[limit - 1] if len(page) > limit else None,
        results=_with_masks(conn, rows, preview),
    )


def browse_image(conn: Connection, campaign_id: str, image_id: str, *, preview: int = 1280) -> BrowsedImage:
    """One image; see `browse_images`.

    Raises:
        NotFoundError: The campaign has no such image.
    """
    row = conn.execute(_images(campaign_id).where(Image.id == image_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no image {image_id!r} in this campaign.")
    return _with_masks(conn, [row], preview)[0]


def _images(campaign_id: str) -> Select[Any]:
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
    return select(*columns).join(Task, of_image).where(Image.campaign_id == campaign_id)


def _count(conn: Connection, campaign_id: str, wanted: BrowseFilter, numbers: Select[Any]) -> tuple[int, bool]:
    """How many images match, and whether that is all of them; without a look at them where their tasks tell."""
    if wanted.category is None and wanted.annotator_id is None and not wanted.unsure:
        tasks = tallies(conn, campaign_id, "task")
        return sum(tasks.values()) if wanted.state is None else tasks.get(wanted.state, 0), True
    found = _counted(conn, numbers)
    return min(found, COUNTED), found <= COUNTED


def _counted(conn: Connection, numbers: Select[Any]) -> int:
    """How many there are; not beyond one more than `COUNTED`."""
    some = numbers.limit(COUNTED + 1).subquery()
    return int(conn.execute(select(func.count()).select_from(some)).scalar_one())


def _numbers(conn: Connection, campaign_id: str, wanted: BrowseFilter) -> Select[Any]:
    """The numbers of the images that match, read from the index of the filter that the fewest pass."""
    filters: list[Select[Any]] = []
    if wanted.category is not None:
        filters.append(_with_mask(campaign_id, Instance.category_number == wanted.category))
    if wanted.unsure:
        filters.append(_with_mask(campaign_id, literal_column("instances.unsure")))  # as its index says it
    if wanted.annotator_id is not None:
        filters.append(_by_annotator(campaign_id, wanted.annotator_id))
    if wanted.state is not None:
        # a task's position is its image's number
        in_state = Task.campaign_id == campaign_id, Task.state == wanted.state
        filters.append(select(Task.position.label("number")).where(*in_state))
    if not filters:
        return select(Image.number.label("number")).where(Image.campaign_id == campaign_id)
    if len(filters) > 1:
        filters.sort(key=lambda numbers: _counted(conn, numbers))
    first, *others = filters
    number = first.selected_columns.number
    return first.where(*(exists(other.where(other.selected_columns.number == number)) for other in others))


def _with_mask(campaign_id: str, wanted: ColumnElement[bool]) -> Select[Any]:
    """Images that have a current mask like that."""
    return (
        select(Instance.image_number.label("number"))
        .distinct()
        .outerjoin(Session, Session.id == Instance.session_id)
        .where(Instance.campaign_id == campaign_id, wanted, is_current())
    )


def _by_annotator(campaign_id: str, annotator_id: str) -> Select[Any]:
    ended = aliased(Session)  # of its own: the other filters ask for the sessions of masks
    return (
        select(ended.image_number.label("number"))
        .distinct()
        .where(
            ended.campaign_id == campaign_id,
            ended.annotator_id == annotator_id,
            ended.state.in_(("submitted", "skipped")),
        )
    )


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
    reasons = _skip_reasons(conn, [row.id for row in rows if row.state == "skipped"])
    return [
        BrowsedImage(
            **row._mapping,
            skip_reason=reasons.get(row.id),
            preview_size=preview_size(row.height, row.width, preview),
            num_masks=masks[row.id][0].of_image if masks[row.id] else 0,
            masks=[_mask(mask, preview) for mask in masks[row.id]],
        )
        for row in rows
    ]


def _skip_reasons(conn: Connection, image_ids: Sequence[str]) -> dict[str, str]:
    """Why images were skipped the last time."""
    if not image_ids:  # as on most pages
        return {}
    skips = (
        select(Session.image_id, EventRow.payload)
        .join(EventRow, and_(EventRow.session_id == Session.id, EventRow.kind == "skip"))
        .where(Session.image_id.in_(image_ids), Session.state == "skipped")
        .order_by(EventRow.server_time)
    )
    return {image_id: payload["reason"] for image_id, payload in conn.execute(skips)}


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
