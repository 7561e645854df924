"""Rows of a snapshot's tables, made from the catalogue's records. Reads images where they are to be embedded."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from pipeline.ingest.decode import read_image_bytes
from pipeline.storage import snapshots
from pipeline.storage.database import Database
from schemas.campaigns import ImageRecord
from schemas.catalogue import LoggedEvent, MaskRecord

Row = dict[str, Any]
IMAGES_AT_ONCE = 200
_SESSIONS_AT_ONCE = 50


@dataclass(frozen=True)
class LabelledImage:
    """An image of a snapshot and its masks, by number."""

    image: ImageRecord
    masks: list[MaskRecord]


def labelled_images(database: Database, snapshot_id: str) -> Iterator[LabelledImage]:
    """The images of a snapshot by number, read in batches of short transactions."""
    after = 0
    while True:
        with database.connect() as conn:
            batch = snapshots.snapshot_images(conn, snapshot_id, after, IMAGES_AT_ONCE)
            masks = snapshots.masks_of_images(conn, snapshot_id, [image.id for image in batch])
        if not batch:
            return
        by_image: dict[str, list[MaskRecord]] = defaultdict(list)
        for mask in masks:
            by_image[mask.image_id].append(mask)
        yield from (LabelledImage(image, by_image[image.id]) for image in batch)
        after = batch[-1].number


def logged_events(database: Database, snapshot_id: str) -> Iterator[LoggedEvent]:
    """The events of a snapshot's sessions by image number, session and seq, read in batches."""
    with database.connect() as conn:
        sessions = snapshots.snapshot_sessions(conn, snapshot_id)
    for start in range(0, len(sessions), _SESSIONS_AT_ONCE):
        with database.connect() as conn:
            events = snapshots.session_clicks(conn, snapshot_id, sessions[start : start + _SESSIONS_AT_ONCE])
        yield from events


def split_of(image: ImageRecord) -> str:
    """Images held out for evaluation are a split of their own."""
    return "holdout" if image.holdout else "train"


def image_row(labelled: LabelledImage, embed: bool) -> Row:
    """A row of `images`.

    Raises:
        BadImageError, CorruptDataError, OSError: The image is to be embedded and is gone, changed or not reachable.
    """
    image = labelled.image
    pixels = (
        {"bytes": read_image_bytes(image.ref), "path": image.file_name} if embed else {"bytes": None, "path": image.uri}
    )
    return {
        "image_id": image.number,
        "image": pixels,
        "file_name": image.file_name,
        "width": image.width,
        "height": image.height,
        "sha256": image.sha256,
        "split": split_of(image),
        "verified_empty": not labelled.masks,
        "objects": [_object(mask) for mask in labelled.masks],
    }


def annotation_row(mask: MaskRecord, image: ImageRecord, names: Mapping[int, str]) -> Row:
    """A row of `annotations`."""
    number = mask.category_number
    return _object(mask, lineage=False) | {
        "image_id": mask.image_number,
        "category": None if number is None else names.get(number),
        "file_name": image.file_name,
        "split": split_of(image),
        "annotation_uuid": mask.id,
        "instance_id": mask.instance_id,
        "version": mask.version,
        "parent_uuid": mask.parent_id,
        "source": mask.source,
        "num_clicks": mask.num_clicks,
        "mask_sha256": mask.mask_sha256,
        "session_id": mask.session_id,
        "accept_event_id": mask.event_id,
        "seq": mask.seq,
        "annotator": mask.pseudonym,
        "model_digest": mask.model_digest,
        "adapter_digest": mask.adapter_digest,
        "embedding_digest": mask.embedding_digest,
        "created_at": mask.created_at,
    }


def click_row(logged: LoggedEvent, session_began: datetime, pins: Mapping[str, Any]) -> Row:
    """A row of `clicks`.

    Args:
        logged: The event with its result.
        session_began: Server time of the session's first event; `t_ms` counts from it.
        pins: Of the event's instance.
    """
    event, result = logged.event, logged.result
    assert event.server_time is not None
    positive = event.payload.get("is_positive")
    return {
        "image_id": logged.image_number,
        "session_id": event.session_id,
        "seq": event.seq,
        "event_id": event.event_id,
        "instance_id": event.instance_id,
        "annotation_id": logged.mask_number,
        "kind": event.kind,
        "t_ms": round((event.server_time - session_began).total_seconds() * 1000),
        "x": event.payload.get("x"),
        "y": event.payload.get("y"),
        "sign": None if positive is None else 1 if positive else -1,
        "candidate_index": event.payload.get("index"),
        "undone": logged.undone,
        "payload": _json(event.payload),
        "mask_sha256": result and result.mask_sha256,
        "roi": result and result.roi,
        "scores": result and result.scores,
        "model_digest": pins.get("model_digest"),
        "adapter_version": pins.get("adapter_digest"),
        "latency_ms": sum(result.latency_ms.values()) if result else None,
        "engine": _json(result.engine) if result else None,
        "annotator": logged.pseudonym,
        "server_time": event.server_time,
    }


def _object(mask: MaskRecord, lineage: bool = True) -> Row:
    """The fields of a mask under their COCO names; the category of masks without one is 0."""
    row: Row = {
        "id": mask.number,
        "category_id": mask.category_number or 0,
        "bbox": mask.bbox,
        "area": float(mask.area),
        "iscrowd": False,
        "segmentation": {"size": [mask.height, mask.width], "counts": mask.rle_counts},
    }
    return row | {"model_version": mask.adapter_digest or mask.model_digest} if lineage else row


def _json(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
