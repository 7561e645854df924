"""Exporting a snapshot of a campaign: its labels in the wanted formats, in a directory that appears whole."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.export.batches import Clicks, Labels, read_snapshot
from pipeline.export.coco import CocoFormat
from pipeline.export.delta import Delta, delta_between, find_base
from pipeline.export.directory import SnapshotDirectory
from pipeline.export.file_list import summary
from pipeline.export.huggingface import HuggingFaceFormat
from pipeline.export.lvis import LvisFormat
from pipeline.export.manifest import MANIFEST, manifest_facts, read_manifest, versions
from pipeline.export.parquet import ParquetFormat
from pipeline.export.png import PngFormat
from pipeline.export.splits import Splits
from pipeline.export.target import Format, Target
from pipeline.export.yolo import YoloFormat
from pipeline.storage import snapshots
from pipeline.storage.database import Database
from pipeline.storage.files import join, url_of
from pipeline.storage.tombstones import tombstones
from schemas.campaigns import CampaignRecord
from schemas.catalogue import SnapshotRecord
from schemas.errors import BadInputError

FORMATS: dict[str, Callable[[Target], Format]] = {
    "coco": CocoFormat,
    "parquet": ParquetFormat,
    "png": PngFormat,
    "lvis": LvisFormat,
    "yolo-seg": YoloFormat,
    "hf": HuggingFaceFormat,
}
Progress = Callable[[dict[str, Any]], None]


class ExportReport(BaseModel):
    """What an export came to.

    Attributes:
        manifest_uri: Of the manifest; empty when it was stopped, and then nothing is there.
        counts: images, verified_empty, annotations, clicks, ...; of a delta also removed_images and
            removed_annotations.
        since_snapshot: Number of the snapshot that it is a delta of; None: it is whole.
        files: path, bytes, sha256 of the first files, masks as PNG last; the manifest lists all.
        num_files: All of them.
        num_bytes: Of all of them.
    """

    manifest_uri: str = ""
    snapshot_id: str = ""
    snapshot_number: int = 0
    since_snapshot: int | None = None
    counts: dict[str, int] = {}
    files: list[dict[str, Any]] = []
    num_files: int = 0
    num_bytes: int = 0
    stopped: bool = False

    def as_result(self) -> dict[str, Any]:
        """What a job keeps of it."""
        return self.model_dump(mode="json") | {"snapshot": self.snapshot_number}


class _StoppedError(Exception):
    """Asked to stop."""


@dataclass(frozen=True)
class _Options:
    formats: frozenset[str]
    splits: Splits
    embed: bool
    progress: Progress | None
    should_stop: Callable[[], bool]

    @property
    def images(self) -> str:
        """As the command line and the manifest say it."""
        return "embedded" if self.embed else "uri"


def export_snapshot(
    database: Database,
    campaign: CampaignRecord,
    to_url: str,
    formats: Sequence[str] = ("coco", "parquet"),
    *,
    filters: Mapping[str, Any] | None = None,
    splits: Splits | None = None,
    images: Literal["embedded", "uri"] = "embedded",
    snapshot_id: str | None = None,
    since_snapshot: str | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    min_free_bytes: int = 0,
) -> ExportReport:
    """Take a snapshot of the accepted masks and write it.

    On an object store, what the same call began and did not finish is gone on with: the same snapshot.

    Args:
        database: The catalogue.
        campaign: Whose masks.
        to_url: Empty or absent folder or URL.
        formats: Of `FORMATS`.
        filters: What to take; see `snapshots.create_snapshot`.
        splits: Shares to validate and test on.
        images: Whether the image files become part of the snapshot, where the format can hold them, or their URIs.
        snapshot_id: An existing snapshot of the campaign to write again; its filters are its own.
        since_snapshot: Number or id of an older one: only what changed since is written, see `delta`.
        progress: Called with counts as it goes on.
        should_stop: Asked between images.
        min_free_bytes: It stops before a local disk has less than this.

    Raises:
        BadInputError: Unknown format or filter, hf without images, foreign snapshot, one that there is no such delta
            of, or something is at the URL.
        NotFoundError: There is no such older snapshot.
        BadImageError, CorruptDataError: An image to be embedded is gone or has changed since ingest.
        OutOfSpaceError: The disk is full or near its floor; nothing is visible.
        BusyError, ForbiddenError: The object store does not answer, or refuses; no manifest is there.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise BadInputError(f"Unknown export format {', '.join(unknown) or '(none)'}. Known: {', '.join(FORMATS)}.")
    if images == "uri" and "hf" in formats:
        raise BadInputError("The format hf holds the image files. Export them (--images embedded), or choose parquet.")
    options = _Options(
        frozenset(formats), splits or Splits(), images == "embedded", progress, should_stop or (lambda: False)
    )
    existing = None if snapshot_id is None else _existing(database, campaign, snapshot_id)
    wanted = existing.filters if existing else {name: v for name, v in (filters or {}).items() if v is not None}
    since = _base(database, campaign, since_snapshot, options, wanted)
    facts = _facts(campaign, options, wanted, since)
    with SnapshotDirectory(to_url, min_free_bytes) as directory:
        snapshot = existing or _new_or_unfinished(database, campaign, directory.unfinished(facts), wanted)
        delta = None
        if since is not None:
            with database.connect() as conn:
                delta = delta_between(conn, since, snapshot)
        directory.begin(facts, snapshot.id)
        try:
            return _Export(database, campaign, snapshot, directory, options, delta).run()
        except _StoppedError:
            return ExportReport(snapshot_id=snapshot.id, snapshot_number=snapshot.number, stopped=True)


def published_report(url: str) -> ExportReport:
    """The report of the export that was published at a URL, by its manifest.

    Raises:
        NotFoundError: There is no manifest.
        CorruptDataError: The manifest is not one.
        BadInputError: It was written by a newer version.
    """
    fs, root, manifest = read_manifest(url)
    since = manifest["delta"]["since"]["number"] if "delta" in manifest else None
    return ExportReport(
        manifest_uri=url_of(fs, join(root, MANIFEST)),
        snapshot_id=manifest["snapshot"]["id"],
        snapshot_number=manifest["snapshot"]["number"],
        since_snapshot=since,
        counts=manifest["counts"],
        **summary(manifest["files"]),
    )


def _facts(
    campaign: CampaignRecord, options: _Options, filters: dict[str, Any], since: SnapshotRecord | None
) -> dict[str, Any]:
    """What decides on the bytes of an export, besides its snapshot."""
    facts = {
        "campaign_id": campaign.id,
        "formats": sorted(options.formats),
        "filters": filters,
        "splits": {"val": options.splits.val, "test": options.splits.test},
        "embed": options.embed,
        **versions(),
    }
    return facts if since is None else facts | {"since_snapshot": since.id}


def _new_or_unfinished(
    database: Database, campaign: CampaignRecord, unfinished: str | None, filters: dict[str, Any]
) -> SnapshotRecord:
    if unfinished is not None:
        return _existing(database, campaign, unfinished)
    with database.begin() as conn:
        return snapshots.create_snapshot(conn, campaign.id, "export", filters)


def _existing(database: Database, campaign: CampaignRecord, snapshot_id: str) -> SnapshotRecord:
    with database.connect() as conn:
        snapshot = snapshots.get_snapshot(conn, snapshot_id)
    if snapshot.campaign_id != campaign.id:
        raise BadInputError(f"Snapshot {snapshot_id} is not one of campaign {campaign.name!r}.")
    return snapshot


def _base(
    database: Database,
    campaign: CampaignRecord,
    since_snapshot: str | None,
    options: _Options,
    filters: dict[str, Any],
) -> SnapshotRecord | None:
    if since_snapshot is None:
        return None
    with database.connect() as conn:
        return find_base(
            conn,
            campaign.id,
            since_snapshot,
            formats=options.formats,
            filters=filters,
            splits=options.splits,
            images=options.images,
        )


class _Export:
    """One export while it runs."""

    def __init__(
        self,
        database: Database,
        campaign: CampaignRecord,
        snapshot: SnapshotRecord,
        directory: SnapshotDirectory,
        options: _Options,
        delta: Delta | None,
    ) -> None:
        self.database = database
        self.campaign = campaign
        self.snapshot = snapshot
        self.directory = directory
        self.options = options
        self.delta = delta
        self.only = None if delta is None else delta.changes.images
        self.counts = {"images": 0, "verified_empty": 0, "annotations": 0}
        if "parquet" in options.formats:  # no other has a place for them
            self.counts["clicks"] = 0
        if delta is not None:
            self.counts |= delta.counts
        self.adapters: set[str] = set()

    def run(self) -> ExportReport:
        """Write everything, then publish."""
        target, options = self._target(), self.options
        with ExitStack() as stack:
            writers = {}
            for name in sorted(options.formats):
                writers[name] = FORMATS[name](target)
                stack.callback(writers[name].close)
            self._write(list(writers.values()))
            facts = {}
            for name, writer in writers.items():
                self.tick()
                facts[name] = writer.finish()
        if self.delta is not None:
            self.delta.write_tombstones(self.directory)
        self.tick()
        with self.database.connect() as conn:
            purged = tombstones(conn, self.campaign.id)
        uri, files = self.directory.publish(
            manifest_facts(
                self.campaign,
                self.snapshot,
                formats=options.formats,
                images=options.images,
                splits=options.splits,
                adapters=self.adapters,
                counts=self.counts,
                reports=facts,
                purged=purged,
                delta=None if self.delta is None else self.delta.facts,
            )
        )
        return ExportReport(
            manifest_uri=uri,
            snapshot_id=self.snapshot.id,
            snapshot_number=self.snapshot.number,
            since_snapshot=None if self.delta is None else self.delta.since.number,
            counts=self.counts,
            **files,
        )

    def tick(self) -> None:
        """Say how far it is.

        Raises:
            _StoppedError: It is to stop.
        """
        if self.options.should_stop():
            raise _StoppedError
        if self.options.progress:
            of = self.snapshot.images if self.only is None else len(self.only)
            self.options.progress({"of": of, **self.counts})

    def _write(self, writers: Sequence[Format]) -> None:
        clicks = "clicks" in self.counts
        with closing(read_snapshot(self.database, self.snapshot, self.options.splits, clicks, self.only)) as parts:
            for part in parts:
                for writer in writers:
                    self.tick()
                    if isinstance(part, Labels):
                        writer.add_labels(part)
                    else:
                        writer.add_clicks(part.table)
                self._count(part)

    def _count(self, part: Labels | Clicks) -> None:
        if isinstance(part, Clicks):
            self.counts["clicks"] += part.table.num_rows
            return
        self.counts["images"] += part.images.num_rows
        self.counts["verified_empty"] += sum(part.images["verified_empty"].to_pylist())
        self.counts["annotations"] += part.annotations.num_rows
        self.adapters.update(part.annotations["adapter_digest"].drop_null().unique().to_pylist())

    def _target(self) -> Target:
        title, created = f"{self.campaign.name}, snapshot {self.snapshot.number}", self.snapshot.created_at
        if self.delta is not None:
            title += f": what changed since snapshot {self.delta.since.number}"
        return Target(
            directory=self.directory,
            title=title,
            info={
                "description": title,
                "version": str(self.snapshot.number),
                "year": created.year,
                "date_created": created.isoformat(),
                "contributor": "clickloop",
            },
            categories=[(category.number, category.name) for category in self.snapshot.categories],
            filters=self.snapshot.filters,
            embed=self.options.embed,
            tick=self.tick,
        )
