"""A delta: what a snapshot holds on the images that changed since an older one, and tombstones for what is gone.

Its unit is the image: each that changed is written whole, with all its masks and clicks, so that whoever has an export
of the older snapshot replaces what it says of these images, and drops what the tombstones name.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection

from pipeline.export.directory import SnapshotDirectory
from pipeline.export.splits import Splits
from pipeline.storage.changes import Changes, changes_between, find_export, written_options
from schemas.catalogue import SnapshotRecord
from schemas.errors import BadInputError

DELTA_FORMATS = ("coco", "parquet")
"""The others tell of the whole set, or name files by what nobody knows any more after a purge."""
TOMBSTONES = "tombstones.json"


@dataclass(frozen=True)
class Delta:
    """What became of the snapshot `since`."""

    since: SnapshotRecord
    changes: Changes

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"since": {"id": self.since.id, "number": self.since.number}, "tombstones": TOMBSTONES}

    @property
    def counts(self) -> dict[str, int]:
        """How much is gone."""
        gone = self.changes
        return {"removed_images": len(gone.removed_images), "removed_annotations": len(gone.removed_annotations)}

    def write_tombstones(self, directory: SnapshotDirectory) -> None:
        """Write what is gone: images (with when they were purged, if so) and annotations, by their ids."""
        gone = {"images": self.changes.removed_images, "annotations": self.changes.removed_annotations}
        directory.local_path(TOMBSTONES).write_bytes(orjson.dumps(gone, option=orjson.OPT_INDENT_2))
        directory.add(TOMBSTONES)


def delta_between(conn: Connection, since: SnapshotRecord, snapshot: SnapshotRecord) -> Delta:
    """What became of an older snapshot of the same campaign.

    Raises:
        BadInputError: It is not older.
    """
    return Delta(since, changes_between(conn, since, snapshot))


def find_base(
    conn: Connection,
    campaign_id: str,
    since_snapshot: str,
    *,
    formats: Collection[str],
    filters: Mapping[str, Any],
    splits: Splits,
    images: str,
) -> SnapshotRecord:
    """The older snapshot of a delta: one that a delta of this kind says something about.

    Args:
        conn: Any transaction.
        campaign_id: The campaign.
        since_snapshot: Number or id.
        formats: What the delta is written as.
        filters: Of the new snapshot.
        splits: Shares of the parts.
        images: "embedded" or "uri".

    Raises:
        NotFoundError: The campaign has no such snapshot.
        BadInputError: A format has no deltas, or the older snapshot was made or written with other choices.
    """
    whole = sorted(set(formats) - set(DELTA_FORMATS))
    if whole:
        raise BadInputError(
            f"{', '.join(whole)} cannot be written as a delta; {' and '.join(DELTA_FORMATS)} can. Leave out "
            "--since-snapshot, or choose these formats."
        )
    base = find_export(conn, campaign_id, since_snapshot)
    if _unordered(base.filters) != _unordered(filters):
        raise BadInputError(
            f"Snapshot {base.number} has the filters {_said(base.filters)}, this export has {_said(filters)}. "
            "A delta needs the same: what is filtered out would look as if it were gone."
        )
    written = [_choices(payload) for payload in written_options(conn, base.id)]
    wanted = (splits.val, splits.test, images)
    if written and not any(choices[0] == wanted and choices[1] >= set(formats) for choices in written):
        (val, test, kind), known = written[-1]
        raise BadInputError(
            f"Snapshot {base.number} was written as {', '.join(sorted(known))} with --val {val} --test {test} "
            f"--images {kind}. A delta needs the same shares and images, and no other formats."
        )
    return base


def _unordered(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Filters to be compared: lists of them are sets."""
    return {name: set(value) if isinstance(value, list) else value for name, value in filters.items()}


def _choices(payload: Mapping[str, Any]) -> tuple[tuple[float, float, str], set[str]]:
    """Shares and images, and the formats, of an export's request."""
    shares = (payload.get("val") or 0.0, payload.get("test") or 0.0)
    return (*shares, payload.get("images") or "embedded"), set(payload.get("formats") or ("coco", "parquet"))


def _said(filters: Mapping[str, Any]) -> str:
    return orjson.dumps(filters).decode() if filters else "none"
