"""A snapshot's manifest: what it says, and reading one again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import orjson
import pyarrow as pa
from fsspec import AbstractFileSystem
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pipeline.export.file_list import FileList
from pipeline.export.splits import Splits
from pipeline.storage.files import join, open_storage, read_bytes, require_no_pipe
from schemas.arrow import FORMAT_VERSION
from schemas.campaigns import CampaignRecord
from schemas.catalogue import SnapshotRecord, TombstoneRecord
from schemas.errors import BadInputError, CorruptDataError, NotFoundError
from schemas.version import own_version

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "clickloop-snapshot"
DELTA_FORMAT = "clickloop-snapshot-delta"
"""Of a delta, which who knows snapshots only must not take for one."""


class _ReadCategory(BaseModel):
    id: int
    name: str


class _ReadFile(BaseModel):
    path: str
    bytes: int
    sha256: str


class _ReadSnapshot(BaseModel):
    id: str
    number: int


class _ReadDelta(BaseModel):
    since: _ReadSnapshot
    tombstones: str


class _Read(BaseModel):
    """What readers of a manifest rely on."""

    model_config = ConfigDict(strict=True)

    format_version: int
    snapshot: _ReadSnapshot
    counts: dict[str, int]
    formats: list[str]
    categories: list[_ReadCategory]
    files: list[Annotated[_ReadFile, AfterValidator(lambda file: None)]]  # millions: looked at, not kept
    delta: _ReadDelta | None = None


def manifest_facts(
    campaign: CampaignRecord,
    snapshot: SnapshotRecord,
    *,
    formats: Iterable[str],
    images: str,
    splits: Splits,
    adapters: Iterable[str],
    counts: dict[str, int],
    reports: dict[str, dict[str, Any]],
    purged: Iterable[TombstoneRecord] = (),
    delta: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All of the manifest but the list of files. Says nothing of when or where it was written: that is not its content.

    Args:
        campaign: Whose masks.
        snapshot: The snapshot.
        formats: What it was written as.
        images: "embedded" or "uri".
        splits: The shares of its parts.
        adapters: Digests of the adapters that made a mask of it.
        counts: images, annotations, clicks, ...
        reports: What the formats say of themselves, by their names: what they lost, what they left out.
        purged: Tombstones of the campaign's images, for whoever keeps older snapshots.
        delta: Of a delta, since which snapshot it is, and its file of tombstones; None: it is the whole snapshot.
    """
    return {
        "format": MANIFEST_FORMAT if delta is None else DELTA_FORMAT,
        "format_version": FORMAT_VERSION,
        **versions(),
        "campaign": {"id": campaign.id, "name": campaign.name},
        "snapshot": {"id": snapshot.id, "number": snapshot.number, "purpose": snapshot.purpose},
        "parent": snapshot.parent_id,
        "filters": snapshot.filters,
        "created_at": snapshot.created_at.isoformat(),
        "model": {"id": campaign.model_id, "digest": campaign.model_digest},
        "adapters": sorted(adapters),
        "categories": [{"id": category.number, "name": category.name} for category in snapshot.categories],
        "formats": sorted(formats),
        "images": images,
        "splits": {"val": splits.val, "test": splits.test},
        "counts": counts,
        "reports": {name: report for name, report in reports.items() if report},
        "purged": [
            {
                "image": tombstone.image_number,
                "sha256": tombstone.image_sha256,
                "purged_at": tombstone.started_at.isoformat(),
                "annotations": tombstone.counts.get("masks", 0),
                "snapshots": [snapshot["number"] for snapshot in tombstone.snapshots],
            }
            for tombstone in purged
        ],
    } | ({} if delta is None else {"delta": delta})


def write_manifest(path: Path, facts: dict[str, Any], files: FileList) -> None:
    """Write a manifest, file by file: there may be millions.

    Args:
        path: Local file to write.
        facts: See `manifest_facts`.
        files: All others.
    """
    option = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS
    empty = b'\n  "files": []'  # at this indentation only the key itself: strings have no line breaks in JSON
    head, tail = orjson.dumps(facts | {"files": []}, option=option).split(empty)
    with path.open("wb") as out:
        out.write(head + empty[:-1])
        between = b"\n    "
        for file in files:
            out.write(between + orjson.dumps(file, option=option).replace(b"\n", b"\n    "))
            between = b",\n    "
        out.write((b"\n  ]" if files else b"]") + tail)


def read_manifest(url: str) -> tuple[AbstractFileSystem, str, dict[str, Any]]:
    """The file system, folder and manifest of a snapshot or delta.

    Args:
        url: Of the snapshot's folder, or of the manifest itself.

    Raises:
        NotFoundError: There is no manifest: no snapshot, or one that was never finished.
        CorruptDataError: The manifest is not one.
        BadInputError: It was written by a newer version.
    """
    fs, root = open_storage(url.removesuffix(f"/{MANIFEST}"))
    path = join(root, MANIFEST)
    try:
        require_no_pipe(fs, path)
        manifest = orjson.loads(read_bytes(fs, path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"There is no {MANIFEST} at {url!r}: no snapshot, or one that was not finished.") from error
    except orjson.JSONDecodeError as error:
        raise CorruptDataError(f"The {MANIFEST} at {url!r} is broken: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in (MANIFEST_FORMAT, DELTA_FORMAT):
        raise CorruptDataError(f"The {MANIFEST} at {url!r} is not that of a snapshot.")
    written = manifest.get("format_version", 0)
    if isinstance(written, int) and written > FORMAT_VERSION:
        raise BadInputError(f"The snapshot has format {written}, newer than {FORMAT_VERSION} of this program.")
    try:
        _Read.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CorruptDataError(f"The {MANIFEST} at {url!r} is broken: {place}: {first['msg']}.") from error
    if manifest["format"] == DELTA_FORMAT and "delta" not in manifest:
        raise CorruptDataError(
            f"The {MANIFEST} at {url!r} is broken: delta: it does not say since which snapshot it is."
        )
    return fs, root, manifest


def versions() -> dict[str, str]:
    """Of what decides on a snapshot's bytes."""
    return {"clickloop_version": own_version(), "pyarrow_version": pa.__version__}
