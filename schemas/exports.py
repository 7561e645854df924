"""Finished exports, as they are offered for download."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

LISTED_FILES = 20
"""Of one export that its job's result names, as there can be one for each mask."""


class ExportFile(BaseModel):
    """A file of an export: POSIX path below its folder; `bytes` None: not noted."""

    model_config = ConfigDict(frozen=True)

    path: str
    bytes: int | None


class ExportRecord(BaseModel):
    """A finished export.

    Attributes:
        request_id: The job that wrote it.
        snapshot: Its snapshot's number.
        since_snapshot: Of a delta, the number of the snapshot since which it holds the changes.
        uri: Of the folder.
        counts: images, annotations, clicks, ...
        downloadable: Whether this gateway hands out its files.
        files: The first files, manifest first, masks as PNG last.
        num_files: All of them.
        num_bytes: Of all of them, without the manifest.
    """

    model_config = ConfigDict(frozen=True)

    request_id: str
    created_at: datetime
    snapshot: int
    uri: str
    counts: dict[str, int]
    downloadable: bool
    files: list[ExportFile]
    num_files: int
    num_bytes: int
    since_snapshot: int | None = None
