"""Pictures of a snapshot for people: the image, its masks and the clicks that made them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from pipeline.masks.rle import rle_to_mask
from schemas.masks import Rle

MAX_PICTURES = 12
SIDE = 900
COLOURS = ((66, 135, 245), (245, 96, 66), (66, 200, 120), (220, 90, 220), (240, 190, 40))


def save_pictures(snapshot: Path, images: Path, target: Path) -> list[Path]:
    """Draw the first images of an exported snapshot.

    Args:
        snapshot: Folder of the export (COCO and Parquet).
        images: Folder that the COCO file names are relative to.
        target: Folder for the PNG files.

    Returns:
        The files written.
    """
    coco = json.loads(next(snapshot.rglob("instances*.json")).read_text())
    clicks = [row for part in sorted(snapshot.rglob("clicks*.parquet")) for row in pq.read_table(part).to_pylist()]
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for image in coco["images"][:MAX_PICTURES]:
        picture = cv2.imread(str(images / image["file_name"]), cv2.IMREAD_COLOR)
        if picture is None:
            continue
        masks = [a["segmentation"] for a in coco["annotations"] if a["image_id"] == image["id"]]
        for index, rle in enumerate(masks):
            mask = rle_to_mask(Rle(size=tuple(rle["size"]), counts=rle["counts"]))
            colour = np.array(COLOURS[index % len(COLOURS)][::-1])
            picture[mask] = (0.55 * picture[mask] + 0.45 * colour).astype(np.uint8)
        points = [r for r in clicks if r["image_id"] == image["id"] and r["kind"] == "click"]
        radius = max(3, max(picture.shape) // 150)
        for row in points:
            centre = (round(row["x"]), round(row["y"]))
            cv2.circle(picture, centre, radius + 1, (255, 255, 255), -1)
            cv2.circle(picture, centre, radius, (60, 180, 60) if row["sign"] > 0 else (60, 60, 220), -1)
        scale = SIDE / max(picture.shape)
        if scale < 1:
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        file = target / f"{Path(image['file_name']).stem}.png"
        cv2.imwrite(str(file), picture)
        written.append(file)
    return written
