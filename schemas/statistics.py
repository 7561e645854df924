"""How the work of a campaign goes: the figures behind the plots of its page."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class Work(_Figures):
    """What accepting masks took; None where there is nothing to divide by.

    Attributes:
        masks: Accepted by annotators; imported ones don't count.
        clicks_per_mask: Mean.
        seconds_per_mask: Mean time from opening an object to accepting it; those during which the annotator was away
            (see `schemas.tallies.AWAY_S`) are left out.
    """

    masks: int
    clicks_per_mask: float | None
    seconds_per_mask: float | None


class WorkPoint(Work):
    """The work of one period.

    Attributes:
        begin: Of the period, which lasts `CampaignStatistics.period_s`.
        masks_per_hour: Of one person's work: hours are counted in slots of five minutes in which a mask was accepted.
    """

    begin: datetime
    masks_per_hour: float | None


class AdapterWork(Work):
    """Work with one adapter: its number in the campaign, None for the bare model."""

    adapter: int | None


class CategoryWork(Work):
    """Work on one category: its number and name, None for masks without one."""

    number: int | None
    name: str | None


class AnnotatorWork(Work):
    """Work of one annotator: the name, or the pseudonym where names may not be told."""

    id: str
    name: str


class LatencyPoint(_Figures):
    """Server-side milliseconds per click of one period, read off a histogram."""

    begin: datetime
    clicks: int
    p50_ms: float
    p95_ms: float


class LatencyBin(_Figures):
    """Clicks that took at least `from_ms` and less than `to_ms` (None: no limit)."""

    from_ms: float
    to_ms: float | None
    clicks: int


class ClickLatency(_Figures):
    """What computing a click's mask took in the refiners, all stages together."""

    clicks: int
    p50_ms: float | None
    p95_ms: float | None
    histogram: list[LatencyBin]
    over_time: list[LatencyPoint]


class CampaignStatistics(_Figures):
    """The statistics of a campaign.

    Attributes:
        period_s: Seconds of each point over time, chosen by the time that the work spans.
    """

    period_s: int
    total: Work
    over_time: list[WorkPoint]
    by_adapter: list[AdapterWork]
    by_category: list[CategoryWork]
    by_annotator: list[AnnotatorWork]
    latency: ClickLatency


class CampaignProgress(_Figures):
    """A campaign's tasks by state; states without any are left out."""

    campaign_id: str
    tasks: dict[str, int]


class ProgressList(_Figures):
    """Every campaign that has tasks."""

    results: list[CampaignProgress]
