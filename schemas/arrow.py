"""Arrow schemas of the Parquet tables of a snapshot, with the metadata that `datasets` reads.

`FORMAT_VERSION` counts changes that a reader must know of.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

FORMAT_VERSION = 1
UNLABELLED = "unlabelled"
"""Name of category 0: masks that were accepted without a category."""

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BBOX = pa.list_(pa.field("item", pa.float32()), 4)
SEGMENTATION = pa.struct([("size", pa.list_(pa.field("item", pa.int32()), 2)), ("counts", pa.string())])
OBJECT = pa.struct(
    [
        ("id", pa.int64()),
        ("category_id", pa.int64()),
        ("bbox", BBOX),
        ("area", pa.float64()),
        ("iscrowd", pa.bool_()),
        ("segmentation", SEGMENTATION),
        ("model_version", pa.string()),
    ]
)
_TIME = pa.timestamp("us", tz="UTC")

IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("image", IMAGE),
        ("file_name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("split", pa.string()),
        ("verified_empty", pa.bool_()),
        ("objects", pa.list_(pa.field("item", OBJECT))),
    ]
)
"""One row per image, by image_id."""

ANNOTATIONS = pa.schema(
    [
        ("id", pa.int64()),
        ("image_id", pa.int64()),
        ("category_id", pa.int64()),
        ("category", pa.string()),
        ("bbox", BBOX),
        ("area", pa.float64()),
        ("iscrowd", pa.bool_()),
        ("segmentation", SEGMENTATION),
        ("file_name", pa.string()),
        ("split", pa.string()),
        ("annotation_uuid", pa.string()),
        ("instance_id", pa.string()),
        ("version", pa.int32()),
        ("parent_uuid", pa.string()),
        ("source", pa.string()),
        ("num_clicks", pa.int32()),
        ("mask_sha256", pa.string()),
        ("session_id", pa.string()),
        ("accept_event_id", pa.string()),
        ("seq", pa.int32()),
        ("annotator", pa.string()),
        ("model_digest", pa.string()),
        ("adapter_digest", pa.string()),
        ("embedding_digest", pa.string()),
        ("created_at", _TIME),
        ("unsure", pa.bool_()),
        ("score", pa.float64()),
    ]
)
"""One row per mask, by image_id, then id."""

CLICKS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("session_id", pa.string()),
        ("seq", pa.int32()),
        ("event_id", pa.string()),
        ("instance_id", pa.string()),
        ("annotation_id", pa.int64()),
        ("kind", pa.string()),
        ("t_ms", pa.int64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("sign", pa.int8()),
        ("candidate_index", pa.int32()),
        ("undone", pa.bool_()),
        ("payload", pa.string()),
        ("mask_sha256", pa.string()),
        ("roi", pa.list_(pa.field("item", pa.int32()))),
        ("scores", pa.list_(pa.field("item", pa.float32()))),
        ("model_digest", pa.string()),
        ("adapter_version", pa.string()),
        ("latency_ms", pa.float64()),
        ("engine", pa.string()),
        ("annotator", pa.string()),
        ("server_time", _TIME),
    ]
)
"""One row per event of the sessions that the masks came from, by image_id, session, seq."""

TABLES = {"images": IMAGES, "annotations": ANNOTATIONS, "clicks": CLICKS}
SORTED_BY = {"images": "image_id", "annotations": "image_id,id", "clicks": "image_id,session_id,seq"}


def table_schema(table: str, category_names: Sequence[str]) -> pa.Schema:
    """The schema of a table with its metadata.

    Args:
        table: One of `TABLES`.
        category_names: Names by category number; index 0 is `UNLABELLED`.

    Returns:
        The schema; its metadata says the format version, the order of the rows and, for `datasets`, which columns are
        images and class labels.
    """
    schema = TABLES[table]
    facts = {"format_version": FORMAT_VERSION, "table": table, "sorted_by": SORTED_BY[table]}
    return schema.with_metadata({"clickloop": json.dumps(facts)} | features(schema, category_names))


def features(schema: pa.Schema, category_names: Sequence[str]) -> dict[str, str]:
    """Schema metadata that tells `datasets` which columns are images and class labels."""
    found = {field.name: _feature(field.name, field.type, category_names) for field in schema}
    return {"huggingface": json.dumps({"info": {"features": found}})}


def category_names(categories: Sequence[tuple[int, str]]) -> list[str]:
    """Names by number for a class label: 0 is `UNLABELLED`, numbers that are not in use are named so."""
    names = dict(categories)
    highest = max(names, default=0)
    unlabelled = UNLABELLED
    while unlabelled in names.values():
        unlabelled += "_"
    return [unlabelled, *(names.get(number, f"unused-{number}") for number in range(1, highest + 1))]


def _feature(name: str, kind: pa.DataType, names: Sequence[str]) -> Any:
    """A column as `datasets` describes it (the form that old and new versions read)."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if name == "category_id":
        return {"names": list(names), "_type": "ClassLabel"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.name, field.type, names) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature("", kind.value_type, names), "length": kind.list_size, "_type": "Sequence"}
    if pa.types.is_list(kind):
        inner = _feature("", kind.value_type, names)
        return [inner] if pa.types.is_struct(kind.value_type) else {"feature": inner, "_type": "Sequence"}
    return {"dtype": _dtype(kind), "_type": "Value"}


def _dtype(kind: pa.DataType) -> str:
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))
