"""The ImageFolder layout of Hugging Face `datasets`: images with metadata.parquet beside them, a folder per split."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.export.batches import Labels
from pipeline.export.image_files import image_name, put_image
from pipeline.export.parquet import plain_line
from pipeline.export.target import Format, Target
from schemas.arrow import IMAGES, category_names, features

FOLDER = "hf"
SPLITS = {"val": "validation"}
"""What `datasets` calls a split, where it has a word of its own."""
_METADATA = pa.schema(
    [pa.field("file_name", pa.string()), pa.field("source", pa.string())]
    + [IMAGES.field(name) for name in ("image_id", "width", "height", "sha256", "verified_empty", "objects")]
)
"""`file_name` is that of the image beside it, `source` what it was called."""


class HuggingFaceFormat(Format):
    """`hf/SPLIT/000001.jpg`, `hf/SPLIT/metadata.parquet` and a card."""

    def __init__(self, target: Target) -> None:
        self._target = target
        names = category_names(target.categories)
        self._schema = _METADATA.with_metadata(features(_METADATA, names))
        self._writers: dict[str, pq.ParquetWriter] = {}

    def add_labels(self, labels: Labels) -> None:
        """Write the next images and their rows."""
        splits = [SPLITS.get(image.split, image.split) for image in labels.sources]
        for split, image in zip(splits, labels.sources, strict=True):
            self._target.tick()
            put_image(self._target.directory, f"{FOLDER}/{split}", image)
        images = labels.images.rename_columns({"file_name": "source"})
        images = images.append_column("file_name", pa.array([image_name(image) for image in labels.sources]))
        for split in sorted(set(splits)):
            rows = images.filter(pc.equal(pa.array(splits), split)).select(_METADATA.names)
            self._writer(split).write_table(rows.cast(self._schema))

    def finish(self) -> dict[str, Any]:
        """End the tables and write the card."""
        self.close()
        for split in self._writers:
            self._target.directory.add(f"{FOLDER}/{split}/metadata.parquet")
        card = self._target.directory.local_path(f"{FOLDER}/README.md")
        card.write_text(_card(self._target.title, sorted(self._writers)), encoding="utf-8")
        self._target.directory.add(f"{FOLDER}/README.md")
        return {}

    def close(self) -> None:
        """Let go of the tables."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, split: str) -> pq.ParquetWriter:
        if split not in self._writers:
            path = self._target.directory.local_path(f"{FOLDER}/{split}/metadata.parquet")
            self._writers[split] = pq.ParquetWriter(path, self._schema, compression="zstd")
        return self._writers[split]


def _card(title: str, splits: list[str]) -> str:
    files = "".join(f"  - split: {split}\n    path: {split}/**\n" for split in splits)
    configs = f"configs:\n- config_name: default\n  data_files:\n{files}" if files else ""
    return (
        f"---\ntask_categories:\n- image-segmentation\n{configs}---\n# {plain_line(title)}\n\n"
        "Instance masks. `load_dataset` with this folder's path gives each image with its `objects`: their category, "
        "box and mask as COCO RLE (column-major, compressed, ASCII) at the size of the image after EXIF orientation. "
        "An image that was searched and shows none has `verified_empty` set.\n"
    )
