"""Pictures with one disc each, their truth as COCO JSON, and campaigns of them, for tests of commands and flows."""

import json
from pathlib import Path

import cv2
import numpy as np

from pipeline.campaigns import CampaignSpec, create_campaign
from pipeline.ingest.scan import ingest
from pipeline.masks.rle import mask_to_rle
from pipeline.storage.database import Database
from schemas.campaigns import CampaignRecord, CampaignSettings
from schemas.settings import Settings

SIZE = (96, 128)


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `count` PNGs into `folder`/images, and `folder`/truth.json; the images' folder."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    truth: dict[str, list[dict[str, object]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "disc"}],
    }
    for number in range(1, count + 1):
        mask = np.zeros(SIZE, np.uint8)
        center = (int(rng.integers(40, 88)), int(rng.integers(40, 56)))
        cv2.circle(mask, center, int(rng.integers(16, 28)), 1, -1)
        picture = rng.normal(200, 3, (*SIZE, 3)).clip(0, 255).astype(np.uint8)
        picture[mask > 0] = rng.integers(0, 120, 3)
        name = f"{number}.png"
        assert cv2.imwrite(str(images / name), picture)
        rle = mask_to_rle(mask.astype(bool))
        truth["images"].append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        truth["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": {"size": list(rle.size), "counts": rle.counts},
            }
        )
    (folder / "truth.json").write_text(json.dumps(truth))
    return images


def make_campaign(
    settings: Settings, database: Database, images: Path | str, name: str = "discs", **chosen: object
) -> CampaignRecord:
    """A campaign of toy-color with its images registered, without Prefect."""
    spec = CampaignSpec(
        id="00000000-0000-4000-8000-000000000001",
        name=name,
        images=str(images),
        labels=("disc",),
        model="toy-color",
        settings=CampaignSettings.model_validate(chosen),
    )
    record = create_campaign(database, settings.resolved_storage_url, spec)
    ingest(database, record, record.source_url)
    return record
