"""The Arrow tables of a snapshot, made column by column from what the catalogue's queries give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from pipeline.export.json_lines import joined
from pipeline.storage.snapshots import SnapshotImage, undone_events
from schemas.arrow import ANNOTATIONS, BBOX, CLICKS, IMAGE, IMAGES, OBJECT, SEGMENTATION
from schemas.predictions import ImageRef

_POINT = pa.schema([("x", pa.float64()), ("y", pa.float64()), ("is_positive", pa.bool_()), ("index", pa.int32())])


@dataclass(frozen=True, kw_only=True)
class ExportImage(SnapshotImage):
    """An image and the part of the data set that it is in."""

    split: str

    @property
    def ref(self) -> ImageRef:
        """What is needed to read it."""
        return ImageRef(sha256=self.sha256, uri=self.uri, width=self.width, height=self.height)


def in_order(table: pa.Table, *keys: str) -> pa.Table:
    """The rows by some columns; costs little where they are in order already."""
    order = pc.sort_indices(table.select(keys), [(key, "ascending") for key in keys])
    return table if np.array_equal(order, np.arange(table.num_rows)) else table.take(order)


def image_table(sources: Sequence[ExportImage], annotations: pa.Table) -> pa.Table:
    """Rows of `images` with their objects; the images' pixels are named, not embedded.

    Args:
        sources: The images by number.
        annotations: All their masks, by image.
    """
    numbers = np.array([image.number for image in sources])
    starts = np.searchsorted(annotations["image_id"].to_numpy(), np.append(numbers, numbers[-1] + 1))
    model = pc.coalesce(annotations["adapter_digest"], annotations["model_digest"])
    fields = [_one(model if field.name == "model_version" else annotations[field.name]) for field in OBJECT]
    objects = pa.StructArray.from_arrays(fields, fields=list(OBJECT))
    columns: dict[str, Any] = {
        "image_id": pa.array(numbers),
        "image": pa.array([{"bytes": None, "path": image.uri} for image in sources], IMAGE),
        "verified_empty": pa.array(np.diff(starts) == 0),
        "objects": pa.ListArray.from_arrays(pa.array(starts, pa.int32()), objects, IMAGES.field("objects").type),
    }
    for name in ("file_name", "width", "height", "sha256", "split"):
        columns[name] = pa.array([getattr(image, name) for image in sources], IMAGES.field(name).type)
    return _table(IMAGES, columns)


def annotation_table(
    masks: pa.Table, sources: Sequence[ExportImage], categories: Mapping[int, str], pseudonyms: Mapping[str, str]
) -> pa.Table:
    """Rows of `annotations`; the category of masks without one is 0.

    Args:
        masks: Of `snapshots.mask_columns`.
        sources: The images that they are on, by number.
        categories: Names by number.
        pseudonyms: By annotator id.
    """
    place = pa.array(np.searchsorted([image.number for image in sources], masks["image_id"].to_numpy()))
    sizes = np.stack([masks["height"].to_numpy(), masks["width"].to_numpy()], 1).astype(np.int32)
    size = pa.FixedSizeListArray.from_arrays(pa.array(sizes.reshape(-1)), type=SEGMENTATION.field("size").type)
    bbox = number_lists(_one(masks["bbox"]), pa.float32())
    columns = {name: masks[name] for name in ANNOTATIONS.names if name in masks.column_names} | {
        "category_id": pc.fill_null(masks["category_number"], 0),
        "category": _looked_up(masks["category_number"], categories),
        "bbox": pa.FixedSizeListArray.from_arrays(bbox.flatten(), type=BBOX),
        "iscrowd": pa.array(np.zeros(masks.num_rows, np.bool_)),
        "segmentation": pa.StructArray.from_arrays([size, _one(masks["rle_counts"])], fields=list(SEGMENTATION)),
        "file_name": pa.array([image.file_name for image in sources], pa.string()).take(place),
        "split": pa.array([image.split for image in sources], pa.string()).take(place),
        "annotator": _looked_up(masks["annotator_id"], pseudonyms),
    }
    return _table(ANNOTATIONS, columns)


def click_table(events: pa.Table, annotations: pa.Table, pseudonyms: Mapping[str, str]) -> pa.Table:
    """Rows of `clicks` by image, session and seq.

    Args:
        events: Of `snapshots.event_columns`, sessions whole, by session and seq.
        annotations: With the masks that these sessions made.
        pseudonyms: By annotator id.
    """
    session, instance = _one(events["session_id"]), _one(events["instance_id"])
    mask = pc.index_in(instance, pc.if_else(pc.is_valid(annotations["session_id"]), annotations["instance_id"], None))
    image = annotations["image_id"].take(pc.index_in(session, annotations["session_id"]))
    point, pins = _payloads(_one(events["payload"])), _pins(instance, _one(events["pins"]))
    columns = {name: events[name] for name in CLICKS.names if name in events.column_names} | {
        "image_id": image,
        "annotation_id": pc.if_else(pc.is_valid(instance), annotations["id"].take(mask), None),
        "t_ms": _since_first(session, _one(events["server_time"])),
        "x": point["x"],
        "y": point["y"],
        "sign": pc.if_else(point["is_positive"], 1, -1),
        "candidate_index": point["index"],
        "undone": _undone(events),
        "roi": number_lists(_one(events["roi"]), pa.int32()),
        "scores": number_lists(_one(events["scores"]), pa.float32()),
        "model_digest": pins["model_digest"],
        "adapter_version": pins["adapter_digest"],
        "latency_ms": _sums(_one(events["latency_ms"])),
        "annotator": _looked_up(events["annotator_id"], pseudonyms),
    }
    return in_order(_table(CLICKS, columns), "image_id", "session_id", "seq")


def number_lists(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists of numbers as JSON to a list array; null stays null."""
    inner = pc.utf8_trim(pc.replace_substring(texts, " ", ""), "[]")
    parts = pc.split_pattern(inner, ",")
    values, lengths = parts.flatten(), pc.list_value_length(parts).fill_null(0).to_numpy(zero_copy_only=False)
    empty = pc.equal(inner, "").fill_null(False).to_numpy(zero_copy_only=False)
    if empty.any():  # splitting "" gives one empty text
        values = values.filter(pc.not_equal(values, ""))
        lengths = lengths - empty
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pa.ListArray.from_arrays(offsets, values.cast(kind), mask=parts.is_null())


def _table(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    return pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as a single array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _looked_up(keys: pa.ChunkedArray, names: Mapping[Any, str]) -> pa.ChunkedArray:
    """The name of each key; null where there is none."""
    known = pa.array(list(names), keys.type)
    return pa.array(list(names.values()), pa.string()).take(_one(pc.index_in(keys, known)))


def _payloads(payloads: pa.Array) -> pa.Table:
    """What the payloads say of a point."""
    text = joined(payloads, "\n")
    return pj.read_json(
        pa.BufferReader(text),
        read_options=pj.ReadOptions(use_threads=False, block_size=max(len(text), 1)),
        parse_options=pj.ParseOptions(explicit_schema=_POINT, unexpected_field_behavior="ignore"),
    )


def _pins(instance: pa.Array, pins: pa.Array) -> dict[str, pa.Array]:
    """What each event's instance was pinned to: the newest pins of its instance so far."""
    owner = pc.fill_null(instance.dictionary_encode().indices, -1).to_numpy()
    order = np.argsort(owner, kind="stable")
    given = pins.is_valid().to_numpy(zero_copy_only=False)[order]
    newest = np.maximum.accumulate(np.where(given, np.arange(len(order)), 0))
    known = given[newest] & (owner[order][newest] == owner[order]) & (owner[order] >= 0)
    source = np.empty(len(order), np.int64)
    source[order] = np.where(known, order[newest], -1)
    texts = pins.dictionary_encode()
    place = texts.indices.take(pa.array(source, mask=source < 0))
    values = [orjson.loads(text) for text in texts.dictionary.to_pylist()]
    return {
        name: pa.array([value.get(name) for value in values], pa.string()).take(place)
        for name in ("model_digest", "adapter_digest")
    }


def _since_first(session: pa.Array, times: pa.Array) -> pa.Array:
    """Milliseconds since the first event of the session; sessions are whole and in order."""
    micros = times.cast(pa.int64()).to_numpy()
    _, first, member = np.unique(session.dictionary_encode().indices.to_numpy(), return_index=True, return_inverse=True)
    return pa.array((micros - micros[first][member] + 500) // 1000)


def _undone(events: pa.Table) -> pa.Array:
    """Which events an undo named that was not redone."""
    turns = events.filter(pc.is_in(events["kind"], pa.array(["undo", "redo"])))
    log = [
        (row["event_id"], row["kind"], orjson.loads(row["payload"]))
        for row in turns.select(["event_id", "kind", "payload"]).to_pylist()
    ]
    return pc.is_in(events["event_id"], pa.array(sorted(undone_events(log)), pa.string()))


def _sums(texts: pa.Array) -> pa.Array:
    """The sum of each JSON object's numbers."""
    objects = orjson.loads("[" + ",".join(texts.fill_null("null").to_pylist()) + "]")
    return pa.array([None if found is None else float(sum(found.values())) for found in objects], pa.float64())
