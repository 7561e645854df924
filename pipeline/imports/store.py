"""Store what a reader found, and count it: a look first, then every mask once, however often it is done."""

import pickle
import tempfile
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np
from pydantic import BaseModel
from sqlalchemy import Connection, Row

from pipeline.imports.found import EMPTY, Dropped, Found, Items
from pipeline.imports.names import Names
from pipeline.imports.read import read_source
from pipeline.ingest.sources import printable
from pipeline.masks.digest import inside_digest
from pipeline.masks.polygons import rle_iou
from pipeline.masks.rle import decode_runs, encode_runs, runs_to_box
from pipeline.storage import campaigns, images, imported, masks
from pipeline.storage.database import Database
from pipeline.storage.sql import batches
from schemas.campaigns import CampaignRecord
from schemas.errors import BadInputError
from schemas.masks import Rle
from schemas.requests import ImportFormat

EXAMPLES = 5
"""Entries named for each reason."""
REVISED_AT_ONCE = 10
"""Masks in one transaction, during which their images are not given to anybody."""
COUNTING = "they count already, and have another category: to change it, give --trusted"
TWICE = "the source has the same mask twice, by the same name"
HELD = "somebody works on the image or has worked on the mask: import again later, or correct it on the page"


class ImportReport(BaseModel):
    """What an import found.

    Attributes:
        masks: By category.
        images: How many images they are on.
        dropped: How many entries were left out, by reason.
        examples: Some of them, by reason.
        stored: Masks that were not there before; 0 for a look.
        changed: Masks that were there and got another category, or were proposals and count now.
        kept: How many that were there are not as the source has them and were left so, by reason.
        round_trip_iou: Least IoU of a mask with what is stored of it; 1 but for a fault.
    """

    masks: dict[str, int] = {}
    images: int = 0
    dropped: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    stored: int = 0
    changed: int = 0
    kept: dict[str, int] = {}
    round_trip_iou: float = 1.0


def import_source(
    database: Database,
    campaign: CampaignRecord,
    url: str,
    *,
    is_trusted: bool,
    given: ImportFormat | None = None,
    category: str = "object",
    min_score: float | None = None,
    is_look: bool = False,
    on_batch: Callable[[int], None] = lambda done: None,
) -> ImportReport:
    """Register the masks of a file or folder; see `read_source` and `import_masks`."""
    with database.connect() as conn:
        names = Names(images.images_of(conn, campaign.id))
        categories = {known.number: known.name for known in campaigns.list_categories(conn, campaign.id)}
    items = read_source(url, names, given, category, categories=categories, min_score=min_score)
    return import_masks(database, campaign, items, is_trusted=is_trusted, is_look=is_look, on_batch=on_batch)


def import_masks(
    database: Database,
    campaign: CampaignRecord,
    items: Items,
    *,
    is_trusted: bool,
    is_look: bool = False,
    on_batch: Callable[[int], None] = lambda done: None,
) -> ImportReport:
    """Register masks of the campaign's images. Doing it again adds nothing, and changes what differs.

    Everything is read before anything is stored, so that a source that cannot be read leaves nothing behind. What was
    read waits in a temporary file: each mask is decoded and checked once, and memory stays small.

    Args:
        database: Catalogue.
        campaign: Categories that it lacks are added.
        items: Of the source.
        is_trusted: The masks count as they are, in training and exports; else they are proposals, which count once
            somebody has accepted them.
        is_look: Only count.
        on_batch: Called with the number of masks stored or looked at; may raise to stop, what is stored stays.

    Raises:
        BadAnnotationsError: The source is malformed.
    """
    report = ImportReport()
    counts, pictured, taken = Counter[str | None](), set[str](), set[str]()
    with tempfile.TemporaryFile() as checked:
        for batch in batches(items):
            rows = _checked(batch, campaign.id, taken, report)
            counts.update(row["category"] for row in rows)
            pictured.update(row["image_id"] for row in rows)
            if not is_look:
                pickle.dump(rows, checked)
            on_batch(counts.total())
        names = sorted(name for name in counts if name is not None)
        report.masks, report.images = {name: counts[name] for name in names}, len(pictured)
        if None in counts:
            none = campaigns.NO_CATEGORY
            report.masks[none] = report.masks.get(none, 0) + counts[None]
        if not is_look:
            checked.seek(0)
            _store(database, campaign.id, checked, names, taken, is_trusted, report, on_batch)
    return report


def _store(
    database: Database,
    campaign_id: str,
    checked: IO[bytes],
    names: Sequence[str],
    taken: set[str],
    is_trusted: bool,
    report: ImportReport,
    on_batch: Callable[[int], None],
) -> None:
    """One transaction for the new masks of each batch of rows that was written down, further ones for the others.

    `taken` are the ids of all rows.
    """
    with database.begin() as conn:
        records = campaigns.add_categories(conn, campaign_id, names)
    numbers: dict[str | None, int | None] = {record.name: record.number for record in records} | {None: None}
    done, total = 0, sum(report.masks.values())
    while done < total:
        rows = pickle.load(checked)
        with database.begin() as conn:
            known = imported.known_instances(conn, campaign_id, [row["instance_id"] for row in rows])
            for row in rows:
                row["category_number"] = numbers[row.pop("category")]
            known |= _renamed(conn, campaign_id, [row for row in rows if row["instance_id"] not in known], taken)
            new = [row for row in rows if row["instance_id"] not in known]
            report.stored += masks.import_masks(conn, new, is_trusted=is_trusted)
        _revise(database, campaign_id, [row for row in rows if row["instance_id"] in known], known, is_trusted, report)
        done += len(rows)
        on_batch(done)


def _renamed(
    conn: Connection, campaign_id: str, rows: Sequence[dict[str, Any]], taken: set[str]
) -> dict[str, Row[Any]]:
    """Instances that are these rows by image, mask and category, and no others of the source: the rows get their ids.

    Tools number what they export anew: where something was added or deleted, all that follow have other names.
    """
    found: dict[tuple[Any, ...], list[Row[Any]]] = defaultdict(list)
    for instance in imported.same_masks(conn, campaign_id, {(row["image_id"], row["mask_sha256"]) for row in rows}):
        if instance.id not in taken:
            found[instance.image_id, instance.mask_sha256, instance.category_number].append(instance)
    renamed = {}
    for row in rows:
        if same := found[row["image_id"], row["mask_sha256"], row["category_number"]]:
            instance = same.pop(0)
            row["instance_id"] = instance.id
            renamed[instance.id] = instance
    taken |= renamed.keys()
    return renamed


def _revise(
    database: Database,
    campaign_id: str,
    rows: Sequence[dict[str, Any]],
    known: Mapping[str, Any],
    is_trusted: bool,
    report: ImportReport,
) -> None:
    """Of masks that are there: take over the category, and let proposals count that are trusted now."""
    wanted: dict[str, int | None] = {}
    for row in rows:
        number, old = row["category_number"], known[row["instance_id"]]
        is_proposal = old.state == "open"
        if number == old.category_number and not (is_trusted and is_proposal):
            continue
        if is_trusted or is_proposal:
            wanted[row["instance_id"]] = number
        else:
            report.kept[COUNTING] = report.kept.get(COUNTING, 0) + 1
    changed = 0
    for some in batches(wanted.items(), REVISED_AT_ONCE):
        with database.begin() as conn:
            changed += imported.revise_instances(conn, campaign_id, dict(some), is_trusted=is_trusted)
    report.changed += changed
    if changed < len(wanted):
        report.kept[HELD] = report.kept.get(HELD, 0) + len(wanted) - changed


def _checked(
    batch: Sequence[Found | Dropped], campaign_id: str, taken: set[str], report: ImportReport
) -> list[dict[str, Any]]:
    """What `masks.import_masks` needs of each mask, whose id is `taken` then; what is left out goes to the report."""
    rows = []
    for item in batch:
        made = item if isinstance(item, Dropped) else _row(item, campaign_id, report)
        if isinstance(item, Found) and isinstance(made, dict) and made["instance_id"] in taken:
            made = Dropped(TWICE, f"{item.key}, {item.image.file_name}")
        if isinstance(made, Dropped):
            report.dropped[made.reason] = report.dropped.get(made.reason, 0) + 1
            examples = report.examples.setdefault(made.reason, [])
            if len(examples) < EXAMPLES:
                examples.append(printable(made.where[:300]))
        else:
            taken.add(made["instance_id"])
            rows.append(made)
    return rows


def _row(found: Found, campaign_id: str, report: ImportReport) -> dict[str, Any] | Dropped:
    where = f"{found.key}, {found.image.file_name}"
    try:
        if found.category is not None:
            campaigns.check_name(found.category, "category")
    except BadInputError as error:
        return Dropped("the name of its category cannot be used", f"{where}: {error.message}")
    size = found.rle.size
    try:
        inside, box, runs = runs_to_box(decode_runs(found.rle.counts), size)
    except BadInputError as error:
        return Dropped("the mask is malformed", f"{where}: {error.message}")
    if not inside.size:
        return Dropped(EMPTY, where)
    rle = Rle(size=size, counts=encode_runs(runs))
    report.round_trip_iou = min(report.round_trip_iou, rle_iou(rle, found.rle))
    digest = inside_digest(inside, box, size)
    x0, y0, x1, y1 = box
    name = f"{campaign_id}/{found.image.id}/{printable(found.key)}/{digest}"
    return {
        "mask_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"mask/{name}")),
        "instance_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"instance/{name}")),
        "image_id": found.image.id,
        "category": found.category,
        "rle": rle,
        "mask_sha256": digest,
        "area": int(np.count_nonzero(inside)),
        "bbox": (x0, y0, x1 - x0, y1 - y0),
        "score": found.score,
        "unsure": found.unsure,
    }
