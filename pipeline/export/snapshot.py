"""Exporting a snapshot of a campaign: its tables and what is derived from them, in a directory that appears whole."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel

from pipeline.export.coco import Opener, write_coco
from pipeline.export.directory import SnapshotDirectory
from pipeline.export.manifest import manifest_facts
from pipeline.export.parquet import TableWriter, dataset_card
from pipeline.export.png import mask_file_name, write_mask_png
from pipeline.export.rows import annotation_row, click_row, image_row, labelled_images, logged_events
from pipeline.storage import snapshots
from pipeline.storage.database import Database
from schemas.arrow import category_names
from schemas.campaigns import CampaignRecord
from schemas.catalogue import SnapshotRecord
from schemas.errors import BadInputError

FORMATS = ("coco", "parquet", "png")
Progress = Callable[[dict[str, Any]], None]


class ExportReport(BaseModel):
    """What an export came to.

    Attributes:
        manifest_uri: Of the manifest; empty when it was stopped, and then nothing is there.
        counts: images, verified_empty, annotations, clicks, ...
        files: path, bytes, sha256 of each file.
    """

    manifest_uri: str = ""
    snapshot_id: str = ""
    snapshot_number: int = 0
    counts: dict[str, int] = {}
    files: list[dict[str, Any]] = []
    stopped: bool = False


class _StoppedError(Exception):
    """Asked to stop."""


def export_snapshot(
    database: Database,
    campaign: CampaignRecord,
    to_url: str,
    formats: Sequence[str] = ("coco", "parquet"),
    *,
    holdout: bool | None = None,
    categories: Sequence[int] | None = None,
    images: Literal["embedded", "uri"] = "embedded",
    snapshot_id: str | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    min_free_bytes: int = 0,
) -> ExportReport:
    """Take a snapshot of the accepted masks and write it.

    Args:
        database: The catalogue.
        campaign: Whose masks.
        to_url: Empty or absent folder or URL.
        formats: Of coco, parquet, png.
        holdout: Only images held out, only the others, or (None) all.
        categories: Only masks with these numbers.
        images: Whether the Parquet table holds the image files or names their URIs.
        snapshot_id: An existing snapshot of the campaign to write again; filters are then its own.
        progress: Called with counts as it goes on.
        should_stop: Asked between rows.
        min_free_bytes: It stops before a local disk has less than this.

    Raises:
        BadInputError: Unknown format, foreign snapshot, or something is at the URL.
        BadImageError, CorruptDataError: An image to be embedded is gone or has changed since ingest.
        OutOfSpaceError: The disk is full or near its floor; nothing is visible.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise BadInputError(f"Unknown export format {', '.join(unknown) or '(none)'}. Known: {', '.join(FORMATS)}.")
    with SnapshotDirectory(to_url, min_free_bytes) as directory, ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="clickloop-export-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        snapshot = _snapshot(database, campaign, snapshot_id, holdout, categories)
        job = _Export(database, campaign, snapshot, directory, scratch, frozenset(formats), images == "embedded")
        try:
            return job.run(progress, should_stop or (lambda: False))
        except _StoppedError:
            return ExportReport(snapshot_id=snapshot.id, snapshot_number=snapshot.number, stopped=True)


def _snapshot(
    database: Database,
    campaign: CampaignRecord,
    snapshot_id: str | None,
    holdout: bool | None,
    categories: Sequence[int] | None,
) -> SnapshotRecord:
    if snapshot_id is None:
        filters = {"holdout": holdout, "categories": None if categories is None else list(categories)}
        with database.begin() as conn:
            return snapshots.create_snapshot(conn, campaign.id, "export", filters)
    with database.connect() as conn:
        snapshot = snapshots.get_snapshot(conn, snapshot_id)
    if snapshot.campaign_id != campaign.id:
        raise BadInputError(f"Snapshot {snapshot_id} is not one of campaign {campaign.name!r}.")
    return snapshot


class _Export:
    """One export while it runs."""

    def __init__(
        self,
        database: Database,
        campaign: CampaignRecord,
        snapshot: SnapshotRecord,
        directory: SnapshotDirectory,
        scratch: Path,
        formats: frozenset[str],
        embed: bool,
    ) -> None:
        self.database = database
        self.campaign = campaign
        self.snapshot = snapshot
        self.directory = directory
        self.formats = formats
        self.embed = embed
        self.categories = [(category.number, category.name) for category in snapshot.categories]
        self.names = category_names(self.categories)
        self.adapters: set[str] = set()
        self.counts = {"images": 0, "verified_empty": 0, "annotations": 0, "clicks": 0}
        self._published = "parquet" in formats
        self._folder = directory.local_folder("parquet") if self._published else scratch

    def run(self, progress: Progress | None, should_stop: Callable[[], bool]) -> ExportReport:
        """Write everything, then publish."""

        def tick() -> None:
            if should_stop():
                raise _StoppedError
            if progress:
                progress({"images": self.counts["images"], "of": self.snapshot.images, **self.counts})

        image_shards, annotation_shards = self._write_labels(tick)
        if self._published:
            self._write_clicks(tick)
            card = self.directory.local_path("README.md")
            card.write_text(dataset_card(f"{self.campaign.name}, snapshot {self.snapshot.number}"))
            self.directory.add("README.md")
        if "coco" in self.formats:
            path = self.directory.local_path("coco/instances.json")
            write_coco(
                path, self._openers(image_shards), self._openers(annotation_shards), self.categories, self._info()
            )
            self.directory.add("coco/instances.json")
        tick()
        uri = self.directory.publish(
            manifest_facts(
                self.campaign,
                self.snapshot,
                formats=self.formats,
                images="embedded" if self.embed else "uri",
                adapters=self.adapters,
                counts=self.counts,
            )
        )
        return ExportReport(
            manifest_uri=uri,
            snapshot_id=self.snapshot.id,
            snapshot_number=self.snapshot.number,
            counts=self.counts,
            files=self.directory.files,
        )

    def _write_labels(self, tick: Callable[[], None]) -> tuple[list[str], list[str]]:
        """The tables images and annotations, and the PNG masks; names of the shards."""
        names = dict(self.categories)
        embed = self.embed and self._published
        with self._table("images") as images, self._table("annotations") as annotations:
            for labelled in labelled_images(self.database, self.snapshot.id):
                row = image_row(labelled, embed)
                images.write(row, len(row["image"]["bytes"] or b"") + 1000 * len(labelled.masks))
                for mask in labelled.masks:
                    annotations.write(annotation_row(mask, labelled.image, names), len(mask.rle_counts))
                    self.adapters.update(filter(None, [mask.adapter_digest]))
                    if "png" in self.formats:
                        write_mask_png(self.directory.local_path(mask_file_name(mask)), mask)
                        self.directory.add(mask_file_name(mask))
                self.counts["images"] += 1
                self.counts["verified_empty"] += not labelled.masks
                self.counts["annotations"] += len(labelled.masks)
                if self.counts["images"] % 50 == 0:
                    tick()
        return images.shards, annotations.shards

    def _write_clicks(self, tick: Callable[[], None]) -> None:
        session = began = None
        pins: dict[str | None, dict[str, Any]] = {}
        with self._table("clicks") as clicks:
            for logged in logged_events(self.database, self.snapshot.id):
                event = logged.event
                if event.session_id != session:
                    session, began, pins = event.session_id, event.server_time, {}
                    tick()
                if event.pins:
                    pins[event.instance_id] = event.pins
                assert began is not None
                clicks.write(click_row(logged, began, pins.get(event.instance_id, {})))
                self.counts["clicks"] += 1

    def _table(self, table: str) -> TableWriter:
        return TableWriter(self._folder, table, self.names, self._on_shard)

    def _on_shard(self, name: str, rows: int) -> None:
        if self._published:
            self.directory.add(f"parquet/{name}", rows=rows)

    def _openers(self, shards: Sequence[str]) -> list[Opener]:
        return [partial(self._open, name) for name in shards]

    def _open(self, shard: str) -> IO[bytes]:
        if self._published:
            return self.directory.open(f"parquet/{shard}")
        return (self._folder / shard).open("rb")

    def _info(self) -> dict[str, Any]:
        return {
            "description": f"{self.campaign.name}, snapshot {self.snapshot.number}",
            "version": str(self.snapshot.number),
            "year": self.snapshot.created_at.year,
            "date_created": self.snapshot.created_at.isoformat(),
            "contributor": "clickloop",
        }
