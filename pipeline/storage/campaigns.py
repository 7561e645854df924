"""Campaigns, their categories and their figures. Knows nothing about reading images or loading models."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, get_args

from sqlalchemy import Connection, Row, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.storage.adapters import list_adapters
from pipeline.storage.masks import count_imported, count_proposals
from pipeline.storage.numbers import next_number
from pipeline.storage.requests import list_requests
from pipeline.storage.sql import database_now, one, require_id
from pipeline.storage.tallies import tallies
from pipeline.storage.tombstones import purged_campaign, require_no_purge
from schemas.campaigns import (
    CampaignRecord,
    CampaignSettings,
    CampaignStatus,
    CategoryRecord,
    TaskState,
    checked_campaign_name,
    is_name,
)
from schemas.columns import db_now
from schemas.errors import BadInputError, ConflictError, NotFoundError
from schemas.tables import Campaign, CampaignState, Category, Image, Session, Source

IN_USE = timedelta(days=7)
"""A campaign that was neither made nor worked on for so long is not waited for."""
NO_CATEGORY = "(none)"
"""What masks without a category are counted as."""


def create_campaign(
    conn: Connection,
    *,
    campaign_id: str,
    name: str,
    source_url: str,
    model_id: str,
    model_digest: str,
    model_key: str,
    labels: Iterable[str] = (),
    settings: CampaignSettings | None = None,
) -> CampaignRecord:
    """Create a campaign with its pinned model; doing it again with the same values gives the same campaign.

    Raises:
        BadInputError: The name cannot be one (`checked_campaign_name`), or the id is no UUID.
        ConflictError: The name is taken, or the id is another campaign's.
    """
    require_id(campaign_id, "campaign")
    try:
        checked_campaign_name(name)
    except ValueError as error:
        raise BadInputError(f"{error}; got {name[:40]!r}.") from None
    values: dict[str, Any] = {
        "name": name,
        "source_url": source_url,
        "model_id": model_id,
        "model_digest": model_digest,
        "model_key": model_key,
        "settings": (settings or CampaignSettings()).model_dump(mode="json"),
    }
    found = one(conn, select(Campaign.__table__).where(or_(Campaign.id == campaign_id, Campaign.name == name)).limit(1))
    if found is None:
        try:
            with conn.begin_nested():
                conn.execute(
                    insert(Campaign).values(
                        id=campaign_id, state="active", live_version=0, created_at=db_now(), **values
                    )
                )
        except IntegrityError:
            raise ConflictError(f"A campaign named {name!r} was just created by somebody else.") from None
        add_categories(conn, campaign_id, labels)
        return get_campaign(conn, campaign_id)
    if found.id != campaign_id:
        raise ConflictError(f"There is a campaign named {name!r} already. Choose another name.", campaign_id=found.id)
    different = [key for key, value in values.items() if found._mapping[key] != value]
    if different:
        raise ConflictError(f"Campaign {campaign_id} exists with another {', '.join(different)}.", different=different)
    add_categories(conn, campaign_id, labels)
    return get_campaign(conn, campaign_id)


def get_campaign(conn: Connection, id_or_name: str) -> CampaignRecord:
    """A campaign by id or name (an id wins).

    Raises:
        NotFoundError: There is none.
    """
    query = select(Campaign.__table__).where(or_(Campaign.id == id_or_name, Campaign.name == id_or_name))
    rows = conn.execute(query).all()
    if not rows:
        gone = purged_campaign(conn, id_or_name)
        raise NotFoundError(
            gone.text if gone else f"There is no campaign {id_or_name!r}. `clickloop campaign list` shows them."
        )
    row = next((row for row in rows if row.id == id_or_name), rows[0])
    return _record(row, list_categories(conn, row.id))


def id_to_create(conn: Connection, create: dict[str, Any]) -> str:
    """The id to make a campaign by: of what the same request (its id aside) began and did not end, since it was
    interrupted or cancelled, or failed; else its own.

    Args:
        conn: To read by.
        create: As a request of kind "campaign" has it.

    Raises:
        ConflictError: Another campaign has the name.
    """
    own_id = _begun(conn, create) or str(create["id"])
    try:
        existing = get_campaign(conn, create["name"])
    except NotFoundError:
        return own_id
    if existing.id != own_id:
        raise ConflictError(
            f"There is a campaign named {create['name']!r} already. Choose another name, or register more images with "
            f"`clickloop campaign ingest`.",
            id=existing.id,
        )
    return own_id


def _begun(conn: Connection, create: dict[str, Any]) -> str | None:
    wanted = _wanted(create)
    for request in list_requests(conn, kind="campaign", limit=None):  # the newest first
        made = request.payload.get("create")
        if made and _wanted(made) == wanted:
            is_this_one = request.id == create["id"]  # sent again: the same answer, done or not
            return made["id"] if is_this_one or request.state != "done" else None
    return None


def _wanted(create: dict[str, Any]) -> dict[str, Any]:
    settings = CampaignSettings.model_validate(create.get("settings", {}))
    return {name: value for name, value in create.items() if name != "id"} | {"settings": settings}


def list_campaigns(conn: Connection) -> list[CampaignRecord]:
    """All campaigns, oldest first."""
    rows = conn.execute(select(Campaign.__table__).order_by(Campaign.created_at, Campaign.name)).all()
    return [_record(row, list_categories(conn, row.id)) for row in rows]


def weights_in_use(conn: Connection, limit: int) -> list[tuple[str, str | None]]:
    """(model digest, live adapter) of active campaigns that were made or worked on within `IN_USE`.

    Each pair once, those worked on last first.
    """
    recently = database_now(conn) - IN_USE
    claimed = func.max(Session.created_at).label("at")
    last = select(Session.campaign_id, claimed).group_by(Session.campaign_id).subquery()
    query = (
        select(Campaign.model_digest, Campaign.live_adapter)
        .outerjoin(last, last.c.campaign_id == Campaign.id)
        .where(Campaign.state == "active", or_(last.c["at"] > recently, Campaign.created_at > recently))
        .order_by(last.c["at"].desc().nulls_last(), Campaign.created_at.desc())
    )
    pairs = [(row.model_digest, row.live_adapter) for row in conn.execute(query)]
    return list(dict.fromkeys(pairs))[:limit]


def set_campaign_state(conn: Connection, campaign_id: str, state: str) -> None:
    """Pause or resume.

    Raises:
        BadInputError: `state` is neither active nor paused.
        NotFoundError: There is no such campaign.
    """
    if state not in get_args(CampaignState):
        raise BadInputError(f"A campaign is {' or '.join(get_args(CampaignState))}, not {state!r}.")
    done = conn.execute(update(Campaign).where(Campaign.id == campaign_id).values(state=state))
    if done.rowcount == 0:
        raise NotFoundError(f"There is no campaign {campaign_id!r}.")


def add_categories(conn: Connection, campaign_id: str, names: Iterable[str]) -> list[CategoryRecord]:
    """Add the categories that are missing; numbers go on from the largest and are never given again.

    Returns:
        All categories of the campaign, by number.

    Raises:
        BadInputError: A name is empty or too long.
        NotFoundError: There is no such campaign.
        StateError: Something of the campaign is being purged.
    """
    number = next_number(conn, Category, campaign_id)
    known = list_categories(conn, campaign_id)
    present = {category.name for category in known}
    for name in dict.fromkeys(names):
        check_name(name, "label")
        if name in present:
            continue
        conn.execute(insert(Category).values(campaign_id=campaign_id, number=number, name=name))
        known.append(CategoryRecord(number=number, name=name))
        number += 1
    require_no_purge(conn, campaign_id, [])
    return known


def list_categories(conn: Connection, campaign_id: str) -> list[CategoryRecord]:
    """Categories of a campaign by number."""
    query = select(Category.number, Category.name).where(Category.campaign_id == campaign_id).order_by(Category.number)
    return [CategoryRecord(number=number, name=name) for number, name in conn.execute(query)]


def campaign_status(conn: Connection, campaign_id: str) -> CampaignStatus:
    """The figures of a campaign, by id or name.

    Raises:
        NotFoundError: There is none.
    """
    campaign = get_campaign(conn, campaign_id)
    images = tallies(conn, campaign.id, "image")
    masks, mean_clicks, by_category = _mask_figures(conn, campaign)
    return CampaignStatus(
        campaign=campaign,
        images=sum(images.values()),
        holdout_images=images.get("holdout", 0),
        duplicates=conn.execute(_sources(campaign.id, "duplicate", func.count())).scalar_one(),
        quarantined=_quarantined(conn, campaign.id),
        tasks=dict.fromkeys(get_args(TaskState), 0) | tallies(conn, campaign.id, "task"),
        embeddings=tallies(conn, campaign.id, "embedding").get("", 0),
        masks=masks,
        imported=count_imported(conn, campaign.id),
        proposals=count_proposals(conn, campaign.id),
        masks_by_category=by_category,
        clicks=tallies(conn, campaign.id, "click").get("", 0),
        clicks_per_mask=mean_clicks,
        adapters=[adapter.model_dump(mode="json") for adapter in list_adapters(conn, campaign.id)],
        requests=list_requests(conn, campaign.id, limit=10),
    )


def _mask_figures(conn: Connection, campaign: CampaignRecord) -> tuple[int, float | None, dict[str, int]]:
    names = {str(category.number): category.name for category in campaign.categories}
    by_number = tallies(conn, campaign.id, "mask")
    by_category = {names.get(number, NO_CATEGORY): count for number, count in by_number.items()}
    masks, clicks = sum(by_number.values()), sum(tallies(conn, campaign.id, "mask_click").values())
    return masks, clicks / masks if masks else None, by_category


def _quarantined(conn: Connection, campaign_id: str) -> list[dict[str, str]]:
    """Files that are no images, and images that cannot be encoded unless their file was replaced since."""
    files = conn.execute(_sources(campaign_id, "quarantined", Source.uri, Source.reason).order_by(Source.uri)).all()
    images = conn.execute(
        select(Image.uri, Image.quarantine_reason)
        .where(Image.campaign_id == campaign_id, Image.quarantine_reason.is_not(None))
        .where(exists().where(Source.image_id == Image.id, Source.uri == Image.uri))
        .order_by(Image.number)
    ).all()
    return [{"uri": uri, "reason": reason or ""} for uri, reason in (*files, *images)]


def _sources(campaign_id: str, state: str, *columns: Any) -> Any:
    return select(*columns).select_from(Source).where(Source.campaign_id == campaign_id, Source.state == state)


def _record(row: Row[Any], categories: list[CategoryRecord]) -> CampaignRecord:
    return CampaignRecord(**{**row._mapping, "categories": categories})


def check_name(name: str, what: str) -> None:
    """Check the name of something that people call by it.

    Raises:
        BadInputError: It is empty, too long or not printable.
    """
    if not is_name(name):
        raise BadInputError(f"A {what} name has 1 to 200 printable characters; got {name[:40]!r}.")
