"""LVIS's federated form of COCO: which categories an image is known not to show, or may show more of than labelled."""

from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from pipeline.export.batches import Labels
from pipeline.export.coco import CocoFormat
from pipeline.export.json_lines import Parts
from pipeline.export.target import Target
from pipeline.storage.snapshots import OF_MASKS


class LvisFormat(CocoFormat):
    """`lvis/instances.json`.

    An image that an annotator submitted was searched for every category of the snapshot (of its filter, if it has
    one): those without a mask are in `neg_category_ids`. Nothing is known to be absent, and what is present may not be
    complete (`not_exhaustive_category_ids`), where masks were only imported, where a mask has no category (also if
    the filter leaves it out), and where the snapshot leaves masks of an image out by date, annotator or quality.
    """

    file_name = "lvis/instances.json"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        wanted = target.filters.get("categories")
        self._searched = [number for number, _ in target.categories if wanted is None or number in wanted]
        self._partial = bool(OF_MASKS & target.filters.keys())
        self._images_with: dict[int, int] = {}
        self._instances: dict[int, int] = {}

    def image_fields(self, labels: Labels) -> dict[str, Parts]:
        """JSON of an image by key, and counts of its categories."""
        annotations = labels.annotations
        starts = np.searchsorted(annotations["image_id"].to_numpy(), [*(i.number for i in labels.sources), np.inf])
        categories = annotations["category_id"].to_numpy()
        imported = annotations["session_id"].is_null().to_numpy()
        negative, open_ended = [], []
        for image, (first, last) in zip(labels.sources, pairwise(starts), strict=True):
            present = self._count(categories[first:last])
            submitted = first == last or not imported[first:last].all()
            is_named = 0 not in present and image.items <= max(last - first, 1)
            complete = submitted and not self._partial and is_named
            negative.append([number for number in self._searched if number not in present] if complete else [])
            open_ended.append([] if complete else sorted(present - {0}))
        return super().image_fields(labels) | {
            "neg_category_ids": _lists(negative),
            "not_exhaustive_category_ids": _lists(open_ended),
        }

    def category_fields(self, number: int) -> dict[str, Any]:
        """Counts of a category, and LVIS's letter for how frequent it is."""
        images = self._images_with.get(number, 0)
        return {
            "image_count": images,
            "instance_count": self._instances.get(number, 0),
            "frequency": "r" if images <= 10 else "c" if images <= 100 else "f",
        }

    def _count(self, categories: np.ndarray[Any, Any]) -> set[int]:
        """Count an image's categories; which there are."""
        numbers, counts = np.unique(categories, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._images_with[number] = self._images_with.get(number, 0) + 1
            self._instances[number] = self._instances.get(number, 0) + count
        return set(numbers.tolist())


def _lists(values: list[list[int]]) -> Parts:
    return [pa.array([orjson.dumps(value).decode() for value in values], pa.string())]
