"""`clickloop doctor --tune`: which engine is fastest on this machine without changing the masks? Writes engine.json."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flows.services import reading
from pipeline.data.procedural import procedural_scene
from pipeline.evaluation.engines import DRAWN, PHOTOGRAPHS, Target, compare_engines, fastest
from pipeline.inference.engines import machine_name, with_engine
from pipeline.ingest.decode import read_image
from pipeline.masks.rle import rle_to_mask
from pipeline.models import default_weights_path, load_model, weights_digest
from pipeline.storage import files
from pipeline.storage.campaigns import list_campaigns
from pipeline.storage.images import get_image
from pipeline.storage.masks import current_masks
from pipeline.storage.weights import load_model_by_digest
from schemas.campaigns import CampaignRecord
from schemas.engines import DEFAULT_ENGINE, ENGINES, Tuning, runtime_versions, tuning_path
from schemas.errors import BadImageError, BadInputError, CorruptDataError, NotFoundError
from schemas.settings import Settings
from workers.cores import device, use_threads

OBJECTS = 24
MIN_REAL = 20
"""With fewer accepted masks, drawn scenes are clicked, too, and the bar is theirs."""
_PER_IMAGE = 2


def tune(settings: Settings, progress: Callable[[dict[str, Any]], None] = lambda facts: None) -> Tuning:
    """Measure every engine that this machine has, choose, and write WORKSPACE/engine.json.

    The model is that of the newest campaign, clicked on its accepted masks; the shipped one where there is none. Where
    masks are few, scenes are drawn, and only an engine that gives the same masks there is chosen.

    Raises:
        NotFoundError: The campaign's weights are gone.
        BadCheckpointError: They do not load.
    """
    use_threads(settings.refiner_threads)
    place = device()
    campaign, own = _newest(settings)
    if campaign is None:
        model, digest = load_model("default", device=place), weights_digest(default_weights_path("default"))
    else:
        digest = campaign.model_digest
        model = load_model_by_digest(settings.resolved_storage_url, digest, device=place)
    models = {DEFAULT_ENGINE: model.eval()}
    for engine in ENGINES:
        try:
            models[engine] = with_engine(model, engine)
        except BadInputError:
            continue

    drawn = 0 if len(own) >= MIN_REAL else OBJECTS - len(own)
    total = len(own) + drawn

    def targets() -> Iterator[Target]:
        for done, target in enumerate([*own, *_drawn(drawn)], start=1):
            yield target
            progress({"step": "tune", "done": done, "total": total})

    figures, compared = compare_engines(models, targets(), DRAWN if drawn else PHOTOGRAPHS)
    tuning = Tuning(
        machine=machine_name(place),
        packages=runtime_versions(),
        model_digest=digest,
        engine=fastest(figures),
        threads=settings.refiner_threads,
        images=f"{len(own)} accepted masks, {drawn} drawn scenes",
        clicks=compared,
        figures=tuple(figures),
    )
    fs, path = files.open_storage(str(tuning_path(settings.workspace)))
    files.write_atomic(fs, path, tuning.model_dump_json(indent=2).encode())
    return tuning


def _newest(settings: Settings) -> tuple[CampaignRecord | None, list[Target]]:
    """The newest campaign, and objects that people accepted on its images: a few of each image, spread over all."""
    try:
        with reading(settings) as database, database.connect() as conn:
            campaigns = list_campaigns(conn)
            if not campaigns:
                return None, []
            masks: dict[str, list[Any]] = {}
            for mask in current_masks(conn, campaigns[-1].id):
                kept = masks.setdefault(mask.image_id, [])
                if mask.area > 0 and len(kept) < _PER_IMAGE:
                    kept.append(mask.rle)
            wanted = [(image_id, rle) for image_id, kept in masks.items() for rle in kept]
            spread = wanted[:: max(1, len(wanted) // OBJECTS)][:OBJECTS]
            refs = {image_id: get_image(conn, image_id).ref for image_id, _ in spread}
    except NotFoundError:
        return None, []
    targets: list[Target] = []
    for image_id, rle in spread:
        try:
            targets.append((read_image(refs[image_id], settings.max_image_pixels), rle_to_mask(rle)))
        except (BadImageError, CorruptDataError, OSError):  # others will do
            continue
    return campaigns[-1], targets


def _drawn(count: int) -> Iterator[Target]:
    """Scenes that are the same every time."""
    for seed in range(count):
        scene = procedural_scene(np.random.default_rng(seed))
        yield scene.image, scene.masks[int(scene.masks.sum((1, 2)).argmax())]
