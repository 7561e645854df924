"""How the work of a campaign goes: masks, clicks and seconds over time and by adapter, category and annotator.

Everything is grouped by the database; what comes out is as long as the plots, however long the log is. Knows no plots.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import CTE, BigInteger, Connection, Row, Select, and_, case, cast, extract, func, select
from sqlalchemy.orm import aliased

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
from schemas.tables import Adapter, Annotator, EventResult, EventRow, Instance, MaskRow, Session, Task

AWAY_S = 900
"""A mask that took longer says when somebody went to lunch, not how long a mask takes."""
SLOT_S = 300
PERIODS_S = (300, 900, 3600, 4 * 3600, 86_400, 7 * 86_400, 30 * 86_400)
MAX_POINTS = 48
STAGES = ("fetch", "model", "post", "encode")
"""Of `event_results.latency_ms`."""
EDGES_MS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 1000, 2000, 5000)
"""Of the latency histogram; its last bin is open."""


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
    begin, end = conn.execute(
        select(func.min(_seconds(MaskRow.created_at)), func.max(_seconds(MaskRow.created_at))).where(
            MaskRow.campaign_id == campaign.id, MaskRow.source == "annotator"
        )
    ).one()
    period_s = period_for(0 if begin is None else end - begin)
    work = _work(campaign.id)
    groups = conn.execute(_grouped(work)).all()
    names = {category.number: category.name for category in campaign.categories}
    numbers = {
        row.digest: row.number
        for row in conn.execute(select(Adapter.digest, Adapter.number).where(Adapter.campaign_id == campaign.id))
    }
    by_adapter = [
        AdapterWork(adapter=numbers.get(digest), **figures)
        for digest, figures in _figures_by(groups, "adapter_digest").items()
    ]
    by_category = [
        CategoryWork(number=number, name=names.get(number), **figures)
        for number, figures in _figures_by(groups, "category_number").items()
    ]
    return CampaignStatistics(
        period_s=period_s,
        total=Work(**_figures(groups)),
        over_time=_over_time(conn, work, period_s),
        by_adapter=sorted(by_adapter, key=lambda one: one.adapter or 0),
        by_category=sorted(by_category, key=lambda one: (one.number is None, one.number)),
        by_annotator=_by_annotator(conn, groups, with_names),
        latency=_latency(conn, campaign.id, period_s),
    )


def progress_of_all(conn: Connection) -> list[CampaignProgress]:
    """Tasks by state of every campaign that has any."""
    query = select(Task.campaign_id, Task.state, func.count()).group_by(Task.campaign_id, Task.state)
    tasks: dict[str, dict[str, int]] = defaultdict(dict)
    for campaign_id, state, count in conn.execute(query.order_by(Task.campaign_id, Task.state)):
        tasks[campaign_id][state] = count
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


def _seconds(column: Any) -> Any:
    """Whole seconds since 1970 (PostgreSQL rounds, SQLite cuts off: a second's error does not show in a plot)."""
    return cast(extract("epoch", column), BigInteger)


def _work(campaign_id: str) -> CTE:
    """One row per mask that an annotator accepted and did not take back, made once per query."""
    accepted, opened = aliased(EventRow), aliased(EventRow)
    seconds = extract("epoch", accepted.server_time) - extract("epoch", opened.server_time)
    query = (
        select(
            (_seconds(MaskRow.created_at) // SLOT_S).label("slot"),
            MaskRow.annotator_id,
            MaskRow.adapter_digest,
            Instance.category_number,
            MaskRow.num_clicks,
            case((seconds <= AWAY_S, seconds)).label("seconds"),
        )
        .join(Instance, and_(Instance.mask_id == MaskRow.id, Instance.state == "accepted"))
        .join(accepted, accepted.event_id == MaskRow.event_id)
        .join(opened, and_(opened.instance_id == MaskRow.instance_id, opened.kind == "open"))
        .where(MaskRow.campaign_id == campaign_id, MaskRow.source == "annotator")
    )
    return query.cte("work").prefix_with("MATERIALIZED")


def _sums(work: CTE) -> list[Any]:
    return [
        func.count().label("masks"),
        func.sum(work.c.num_clicks).label("clicks"),
        func.sum(work.c.seconds).label("seconds"),
        func.count(work.c.seconds).label("timed"),
    ]


def _grouped(work: CTE) -> Select[Any]:
    """The work by adapter, category and annotator at once: one pass over the masks."""
    keys = (work.c.adapter_digest, work.c.category_number, work.c.annotator_id)
    return select(*keys, *_sums(work)).group_by(*keys)


def _figures(rows: Iterable[Row[Any]]) -> dict[str, Any]:
    """Of rows with `_sums`, added."""
    masks = clicks = timed = 0
    seconds = 0.0
    for row in rows:
        masks, clicks, timed = masks + int(row.masks), clicks + int(row.clicks), timed + int(row.timed)
        seconds += float(row.seconds or 0)
    return {
        "masks": masks,
        "clicks_per_mask": clicks / masks if masks else None,
        "seconds_per_mask": seconds / timed if timed else None,
    }


def _figures_by(rows: Sequence[Row[Any]], key: str) -> dict[Any, dict[str, Any]]:
    parts: dict[Any, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        parts[row._mapping[key]].append(row)
    return {value: _figures(part) for value, part in parts.items()}


def _over_time(conn: Connection, work: CTE, period_s: int) -> list[WorkPoint]:
    slots = select(work.c.slot, *_sums(work)).group_by(work.c.annotator_id, work.c.slot).subquery()
    period = slots.c.slot // (period_s // SLOT_S)
    rows = conn.execute(
        select(
            period.label("period"),
            func.count().label("slots"),
            *(func.sum(slots.c[name]).label(name) for name in ("masks", "clicks", "seconds", "timed")),
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
    total: Any = sum(func.coalesce(EventResult.latency_ms[stage].as_float(), 0.0) for stage in STAGES)
    clicks = (
        select((_seconds(EventRow.server_time) // period_s).label("period"), total.label("total"))
        .join(EventResult, EventResult.event_id == EventRow.event_id)
        .join(Session, Session.id == EventRow.session_id)
        .where(Session.campaign_id == campaign_id, EventRow.kind == "click")
    )
    timed = clicks.cte("clicks").prefix_with("MATERIALIZED")  # else the total is read from JSON again for each edge
    place = case(*[(timed.c.total < to_ms, index) for index, to_ms in enumerate(EDGES_MS[1:])], else_=len(EDGES_MS) - 1)
    rows = conn.execute(select(timed.c.period, place.label("bin"), func.count()).group_by(timed.c.period, "bin")).all()
    periods: dict[int, dict[int, int]] = defaultdict(dict)
    for period, place, count in rows:
        periods[int(period)][int(place)] = int(count)
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
