"""COCO's results, as detectors write them: a list of masks with scores, by the ids of a COCO export of the campaign.

The list says neither which images nor which categories its ids mean. So this format is never guessed: whoever names it
says that the ids are the campaign's, as `coco/instances.json` of its exports has them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.coco import CocoImage, CocoSample, is_whole
from pipeline.imports.found import Dropped, Found, Item, Items
from pipeline.imports.names import NO_IMAGE, Names
from pipeline.imports.source import parse_json
from schemas.errors import BadAnnotationsError


def read(data: bytes, names: Names, categories: Mapping[int, str], min_score: float = 0.0) -> Items:
    """The masks of a list.

    Args:
        data: The file.
        names: The campaign's images; `image_id` is the number of one, or, as text, the path of its file.
        categories: The campaign's, by number; `category_id` is one, or 0 for none.
        min_score: Masks with a lower score are left out.

    Raises:
        BadAnnotationsError: It is no such list.
    """
    results = parse_json(data)
    if not isinstance(results, list) or not all(isinstance(one, dict) and "image_id" in one for one in results):
        raise BadAnnotationsError(
            "The file is no list of COCO results: expected objects with image_id, category_id, segmentation and score."
        )
    for index, result in enumerate(results):
        yield _item(result, f"results[{index}]", index, names, categories, min_score)


def _item(
    result: dict[str, Any], where: str, index: int, names: Names, categories: Mapping[int, str], min_score: float
) -> Item:
    image_id, category_id, score = (result.get(key) for key in ("image_id", "category_id", "score"))
    if isinstance(image_id, str):
        image = names.find(image_id)
    else:
        image = names.numbered(image_id) if is_whole(image_id) else None
    if image is None:
        reason = NO_IMAGE if isinstance(image_id, str) else "the campaign has no image of this number"
        return Dropped(reason, f"{where}: image_id {str(image_id)[:100]}")
    where = f"{where}, {image.file_name}"
    if not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 1:
        return Dropped("its score is no number from 0 to 1", f"{where}: {str(score)[:100]}")
    if score < min_score:
        return Dropped(f"its score is below {min_score:g}", f"{where}: {score:g}")
    if not is_whole(category_id) or (category_id and category_id not in categories):
        return Dropped("the campaign has no category of this number", f"{where}: {str(category_id)[:100]}")
    segmentation = result.get("segmentation")
    if not segmentation or not isinstance(segmentation, list | dict):
        return Dropped("it has no mask, a box at most", where)
    shown = CocoImage(image.number, Path(image.file_name), image.width, image.height)
    sample = CocoSample(index, shown, category_id, "", False, segmentation, None)
    try:
        return Found(image, categories.get(category_id), f"results/{index}", sample.rle(), float(score))
    except BadAnnotationsError as error:
        return Dropped("the segmentation is malformed, or of another image's size", error.message)
