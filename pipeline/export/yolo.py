"""Ultralytics' segmentation format: a text of polygons per image, and data.yaml. What polygons lose is reported."""

from collections import defaultdict
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from pipeline.export.batches import ExportMask, Labels
from pipeline.export.image_files import image_name, put_image
from pipeline.export.polygons import PolygonLoss, mask_outline
from pipeline.export.target import Format, Target
from pipeline.masks.rle import rle_to_box
from schemas.arrow import category_names

FOLDER = "yolo-seg"
PARTS = {"holdout": "val"}
"""What Ultralytics calls a split, where it has a word of its own."""


class YoloFormat(Format):
    """`yolo-seg/labels/PART/000001.txt`, the images likewise where they are part of the snapshot, and data.yaml.

    A line per instance: its class, counted from 0 in the order of the categories' numbers, and x and y of one polygon
    as fractions of the image: the centres of the border's pixels. Masks without a category come as a class behind the
    others. `sources.jsonl` says which image each file is of.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._names = dict(enumerate(category_names(target.categories)))
        self._classes = {number: place for place, (number, _) in enumerate(sorted(target.categories))}
        self._loss = PolygonLoss()
        self._parts = {"train", "val"}
        self._sources: BinaryIO = target.directory.local_path(f"{FOLDER}/sources.jsonl").open("wb")

    def add_labels(self, labels: Labels) -> None:
        """Write the files of the next images."""
        masks: defaultdict[int, list[ExportMask]] = defaultdict(list)
        for mask in labels.masks():
            masks[mask.image_id].append(mask)
        for image in labels.sources:
            self._target.tick()
            part = PARTS.get(image.split, image.split)
            self._parts.add(part)
            name = f"labels/{part}/{image.number:06d}.txt"
            lines = [self._line(mask) for mask in masks[image.number]]
            self._put(name, "".join(lines))
            source: dict[str, Any] = {"image_id": image.number, "file_name": image.file_name, "labels": name}
            if self._target.embed:
                put_image(self._target.directory, f"{FOLDER}/images/{part}", image)
                source["image"] = f"images/{part}/{image_name(image)}"
            else:
                source["uri"] = image.uri
            self._sources.write(orjson.dumps(source, option=orjson.OPT_APPEND_NEWLINE))

    def finish(self) -> dict[str, Any]:
        """Write data.yaml; say which class is which category, and what was lost."""
        self.close()
        self._target.directory.add(f"{FOLDER}/sources.jsonl")
        classes = [(place, number, self._names[number]) for number, place in self._classes.items()]
        parts = "".join(f"{part}: images/{part}\n" for part in sorted(self._parts))
        names = "".join(f"  {place}: {yaml_text(name)}\n" for place, _, name in classes)
        self._put("data.yaml", f"{parts}names:\n{names}" if names else f"{parts}names: {{}}\n")
        listed = [{"class": place, "id": number, "name": name} for place, number, name in classes]
        return {"classes": listed, "polygons": self._loss.report(self._names)}

    def close(self) -> None:
        """Let go of the list of sources."""
        self._sources.close()

    def _line(self, mask: ExportMask) -> str:
        self._target.tick()
        inside, (x0, y0, _, _) = rle_to_box(mask.rle)
        outline = mask_outline(inside)
        self._loss.add(mask.category_id, inside, outline)
        place = self._classes.setdefault(mask.category_id, len(self._classes))
        return f"{place} {outline_text(outline + np.array([x0, y0], np.int32), mask.rle.size)}\n"

    def _put(self, name: str, text: str) -> None:
        path = self._target.directory.local_path(f"{FOLDER}/{name}")
        path.write_text(text, encoding="utf-8")
        self._target.directory.add(f"{FOLDER}/{name}")


def outline_text(outline: NDArray[np.int32], size: tuple[int, int]) -> str:
    """Border pixels (N, 2) of an image of size (height, width) as fractions x y x y ..."""
    fractions = (outline + 0.5) / [size[1], size[0]]
    return " ".join(f"{value:.6f}" for value in fractions.reshape(-1))


def yaml_text(text: str) -> str:
    """Any text as a YAML string on one line."""
    plain = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(plain)}"'
