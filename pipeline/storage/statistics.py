"""How the work of a campaign goes: masks, clicks and seconds over time and by adapter, category and annotator.

Added up from what the database counts by slots of time (see `schemas.tallies`): what there is to add grows with the
hours of work, not with masks and clicks. Knows no plots.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, text

from pipeline.storage.campaigns import get_campaign
from schemas.statistics import (
    AdapterWork,
    AnnotatorWork,
    CampaignProgress,
    CampaignStatistics,
    CategoryWork,
    ClickLatency,
    LatencyBin,
    LatencyPoint,
    Work,
    WorkPoint,
)
from schemas.tables import BY_ANNOTATOR, Adapter, Annotator, LatencyTally, MaskRow, Tally, WorkTally
from schemas.tallies import EDGES_MS, NO_CATEGORY, SLOT_S

PERIODS_S = (300, 900, 3600, 4 * 3600, 86_400, 7 * 86_400, 30 * 86_400)
MAX_POINTS = 48


def campaign_statistics(conn: Connection, campaign_id: str, *, with_names: bool = True) -> CampaignStatistics:
    """The statistics of a campaign, by id or name.

    Args:
        conn: Read transaction.
        campaign_id: The campaign.
        with_names: Name the annotators; else by pseudonym.

    Raises:
        NotFoundError: There is none.
    """
    campaign = get_campaign(conn, campaign_id)
    period_s = _period(conn, campaign.id)
    groups = conn.execute(_grouped(campaign.id)).all()
    names = {category.number: category.name for category in campaign.categories}
    numbers = {
        row.digest: row.number
        for row in conn.execute(select(Adapter.digest, Adapter.number).where(Adapter.campaign_id == campaign.id))
    }
    by_adapter = [
        AdapterWork(adapter=numbers.get(digest), **figures)  # none has the empty digest
        for digest, figures in _figures_by(groups, "adapter_digest").items()
    ]
    by_category = [
        CategoryWork(number=None if number == NO_CATEGORY else number, name=names.get(number), **figures)
        for number, figures in _figures_by(groups, "category_number").items()
    ]
    return CampaignStatistics(
        period_s=period_s,
        total=Work(**_figures(groups)),
        over_time=_over_time(conn, campaign.id, period_s),
        by_adapter=sorted(by_adapter, key=lambda one: one.adapter or 0),
        by_category=sorted(by_category, key=lambda one: (one.number is None, one.number)),
        by_annotator=_by_annotator(conn, groups, with_names),
        latency=_latency(conn, campaign.id, period_s),
    )


def progress_of_all(conn: Connection) -> list[CampaignProgress]:
    """Tasks by state of every campaign that has any."""
    query = select(Tally.campaign_id, Tally.key, func.sum(Tally.amount)).where(Tally.kind == "task")
    tasks: dict[str, dict[str, int]] = defaultdict(dict)
    query = query.group_by(Tally.campaign_id, Tally.key).order_by(Tally.campaign_id, Tally.key)
    for campaign_id, state, count in conn.execute(query):
        if count:
            tasks[campaign_id][state] = int(count)
    return [CampaignProgress(campaign_id=campaign_id, tasks=counts) for campaign_id, counts in tasks.items()]


def period_for(span_s: float) -> int:
    """The shortest period that cuts a time span into at most `MAX_POINTS`, or the longest one."""
    return next((period for period in PERIODS_S if span_s / period < MAX_POINTS), PERIODS_S[-1])


def percentile_of(counts: Mapping[int, int], share: float) -> float:
    """The value below which a share of a histogram's entries lies, evenly spread inside a bin.

    Args:
        counts: Entries by index of the bin (its lower edge in `EDGES_MS`), at least one. The open bin counts as its
            lower edge.
        share: In (0, 1).
    """
    wanted, seen = share * sum(counts.values()), 0
    for index in sorted(counts):
        low = EDGES_MS[index]
        if seen + counts[index] >= wanted or index == max(counts):
            if index + 1 == len(EDGES_MS):
                return float(low)
            return low + (EDGES_MS[index + 1] - low) * (wanted - seen) / counts[index]
        seen += counts[index]
    raise ValueError("An empty histogram has no percentiles.")


def _period(conn: Connection, campaign_id: str) -> int:
    """The period for the time between the first and the last mask that an annotator made."""
    made = select(MaskRow.created_at).where(MaskRow.campaign_id == campaign_id, text(f"masks.{BY_ANNOTATOR}")).limit(1)
    ends = [
        conn.execute(made.order_by(order)).scalar_one_or_none()
        for order in (MaskRow.created_at, MaskRow.created_at.desc())
    ]
    return period_for(0 if ends[0] is None or ends[1] is None else (ends[1] - ends[0]).total_seconds())


_SUMS = tuple(func.sum(getattr(WorkTally, name)).label(name) for name in ("masks", "clicks", "micros", "timed"))


def _grouped(campaign_id: str) -> Select[Any]:
    """The work by adapter, category and annotator at once."""
    keys = (WorkTally.adapter_digest, WorkTally.category_number, WorkTally.annotator_id)
    query = select(*keys, *_SUMS).where(WorkTally.campaign_id == campaign_id).group_by(*keys)
    return query.having(func.sum(WorkTally.masks) > 0)  # what was taken back leaves a row of zeros


def _figures(rows: Iterable[Row[Any]]) -> dict[str, Any]:
    """Of rows with `_SUMS`, added."""
    masks = clicks = micros = timed = 0
    for row in rows:
        masks, clicks = masks + int(row.masks), clicks + int(row.clicks)
        micros, timed = micros + int(row.micros), timed + int(row.timed)
    return {
        "masks": masks,
        "clicks_per_mask": clicks / masks if masks else None,
        "seconds_per_mask": micros / 1e6 / timed if timed else None,
    }


def _figures_by(rows: Sequence[Row[Any]], key: str) -> dict[Any, dict[str, Any]]:
    parts: dict[Any, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        parts[row._mapping[key]].append(row)
    return {value: _figures(part) for value, part in parts.items()}


def _over_time(conn: Connection, campaign_id: str, period_s: int) -> list[WorkPoint]:
    by_slot = select(WorkTally.slot, *_SUMS).where(WorkTally.campaign_id == campaign_id)
    by_slot = by_slot.group_by(WorkTally.annotator_id, WorkTally.slot).having(func.sum(WorkTally.masks) > 0)
    slots = by_slot.subquery()
    period = slots.c.slot // (period_s // SLOT_S)
    rows = conn.execute(
        select(
            period.label("period"),
            func.count().label("slots"),
            *(func.sum(slots.c[name]).label(name) for name in ("masks", "clicks", "micros", "timed")),
        )  # grouped by the label: PostgreSQL does not see that two expressions with parameters are the same
        .group_by("period")
        .order_by("period")
    )
    return [
        WorkPoint(
            begin=_begin(row.period, period_s),
            masks_per_hour=int(row.masks) * 3600 / (row.slots * SLOT_S),
            **_figures([row]),
        )
        for row in rows
    ]


def _by_annotator(conn: Connection, groups: Sequence[Row[Any]], with_names: bool) -> list[AnnotatorWork]:
    by_id = _figures_by(groups, "annotator_id")
    name = Annotator.name if with_names else Annotator.pseudonym
    names = conn.execute(select(Annotator.id, name).where(Annotator.id.in_(list(by_id))))
    found = [AnnotatorWork(id=id, name=name, **by_id[id]) for id, name in names]
    return sorted(found, key=lambda one: (-one.masks, one.name))


def _latency(conn: Connection, campaign_id: str, period_s: int) -> ClickLatency:
    period = LatencyTally.slot // (period_s // SLOT_S)
    rows = conn.execute(
        select(period.label("period"), LatencyTally.bin, func.sum(LatencyTally.clicks))
        .where(LatencyTally.campaign_id == campaign_id)
        .group_by("period", LatencyTally.bin)
    )
    periods: dict[int, dict[int, int]] = defaultdict(dict)
    for begin, place, count in rows:
        if count:
            periods[int(begin)][int(place)] = int(count)
    whole = _added(periods.values())
    return ClickLatency(
        clicks=sum(whole.values()),
        p50_ms=percentile_of(whole, 0.5) if whole else None,
        p95_ms=percentile_of(whole, 0.95) if whole else None,
        histogram=[
            LatencyBin(from_ms=low, to_ms=high, clicks=whole.get(place, 0))
            for place, (low, high) in enumerate(pairwise((*EDGES_MS, None)))
            if low is not None
        ],
        over_time=[
            LatencyPoint(
                begin=_begin(period, period_s),
                clicks=sum(counts.values()),
                p50_ms=percentile_of(counts, 0.5),
                p95_ms=percentile_of(counts, 0.95),
            )
            for period, counts in sorted(periods.items())
        ],
    )


def _added(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    whole: dict[int, int] = defaultdict(int)
    for counts in parts:
        for place, count in counts.items():
            whole[place] += count
    return dict(whole)


def _begin(period: int, period_s: int) -> datetime:
    return datetime.fromtimestamp(int(period) * period_s, UTC)
