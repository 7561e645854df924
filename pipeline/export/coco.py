"""COCO JSON, streamed: its text is made column by column, and memory does not grow with it."""

import shutil
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.export.batches import Labels
from pipeline.export.json_lines import Parts, joined, list_parts, numbers, object_parts, quoted, texts
from pipeline.export.target import Format, Target
from schemas.arrow import category_names

_LINEAGE = ("annotation_uuid", "source", "annotator", "model_digest", "adapter_digest")


class CocoFormat(Format):
    """`coco/instances.json`: annotations first, so that only the smaller images are copied behind them at the end."""

    file_name = "coco/instances.json"

    def __init__(self, target: Target) -> None:
        self._target = target
        path = target.directory.local_path(self.file_name)
        self._images_path = path.with_suffix(".part")
        self._file, self._images_file = path.open("wb"), self._images_path.open("wb+")
        self._images, self._annotations = _Items(self._images_file), _Items(self._file)
        self._unlabelled = False
        self._file.write(b'{"info":' + orjson.dumps(target.info) + b',\n"licenses":[],\n"annotations":[\n')

    def add_labels(self, labels: Labels) -> None:
        """Write the next images and annotations."""
        self._unlabelled |= bool(pc.any(pc.equal(labels.annotations["category_id"], 0)).as_py())
        self._images.append(object_parts(self.image_fields(labels)), len(labels.sources))
        self._annotations.append(object_parts(self.annotation_fields(labels.annotations)), len(labels.annotations))

    def finish(self) -> dict[str, Any]:
        """Write the images behind the annotations, and the categories."""
        self._file.write(b'],\n"images":[\n')
        self._images_file.seek(0)
        shutil.copyfileobj(self._images_file, self._file, 1 << 20)
        categories = list(self._target.categories)
        if self._unlabelled:
            categories.insert(0, (0, category_names(categories)[0]))
        objects = [{"id": number, "name": name} | self.category_fields(number) for number, name in categories]
        self._file.write(b'],\n"categories":[\n' + b",\n".join(map(orjson.dumps, objects)) + b"]}\n")
        self.close()
        self._images_path.unlink()
        self._target.directory.add(self.file_name)
        return {}

    def close(self) -> None:
        """Let go of both files."""
        try:
            self._file.close()
        finally:  # a full disk fails the first
            self._images_file.close()

    def image_fields(self, labels: Labels) -> dict[str, Parts]:
        """JSON of an image by key."""
        images = labels.images
        return {
            "id": numbers(images["image_id"]),
            "file_name": quoted(images["file_name"]),
            "width": numbers(images["width"]),
            "height": numbers(images["height"]),
            "sha256": quoted(images["sha256"]),
            "split": quoted(images["split"]),
            "verified_empty": numbers(images["verified_empty"]),
        }

    def annotation_fields(self, annotations: pa.Table) -> dict[str, Parts]:
        """JSON of an annotation by key."""
        segmentation = annotations["segmentation"].combine_chunks()
        box = np.asarray(annotations["bbox"].combine_chunks().flatten()).astype(np.int32).reshape(-1, 4)
        size = np.asarray(segmentation.field("size").flatten()).reshape(-1, 2)
        sides = [numbers(pa.array(column)) for column in box.T.copy()]
        height, width = (numbers(pa.array(column)) for column in size.T.copy())
        lineage = {name: quoted(annotations[name]) for name in _LINEAGE}
        lineage |= {name: numbers(annotations[name]) for name in ("version", "num_clicks", "score")}
        counts = quoted(segmentation.field("counts"))
        return {
            "id": numbers(annotations["id"]),
            "image_id": numbers(annotations["image_id"]),
            "category_id": numbers(annotations["category_id"]),
            "segmentation": object_parts({"size": list_parts([height, width]), "counts": counts}),
            "area": numbers(annotations["area"].cast(pa.int64())),
            "bbox": list_parts(sides),
            "iscrowd": ["0"],
            "unsure": numbers(annotations["unsure"]),
            "lineage": object_parts(lineage),
        }

    def category_fields(self, number: int) -> dict[str, Any]:
        """What a category says besides its id and name; asked at the end."""
        return {"supercategory": ""}


class _Items:
    """The objects of a JSON list, one per line, as they are appended to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._between = b""

    def append(self, objects: Parts, count: int) -> None:
        """Write some objects."""
        if count:
            self.file.write(self._between)
            self.file.write(joined(texts(objects), ",\n"))
            self._between = b",\n"
