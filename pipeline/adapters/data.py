"""What retraining needs from the catalogue: the masks of a snapshot or of the hold-out, with the clicks behind them.

Reads SQL only; pixels and embeddings are brought later, by whoever trains (`pipeline.adapters.stored`).
"""

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection

from pipeline.adapters.scenes import AdapterImage, AdapterTarget
from pipeline.sessions.fold import effective_edits, fold
from pipeline.storage.images import image_hashes, images_of
from pipeline.storage.masks import current_masks
from pipeline.storage.sessions import session_events
from pipeline.storage.snapshots import get_snapshot, snapshot_images, snapshot_masks
from schemas.campaigns import ImageRecord
from schemas.catalogue import MaskRecord
from schemas.predictions import Edit


def read_retrain_images(conn: Connection, snapshot_id: str) -> list[AdapterImage]:
    """The images of a snapshot that are not held out, with the snapshot's masks and their effective edits.

    Whatever the snapshot's filter says, held-out images never come out of here, and neither do quarantined ones.

    Args:
        conn: Open for reading.
        snapshot_id: Of purpose "retrain".

    Raises:
        NotFoundError: No such snapshot.
    """
    campaign_id = get_snapshot(conn, snapshot_id).campaign_id
    images = [image for image in snapshot_images(conn, snapshot_id) if not image.holdout]
    return _assemble(conn, campaign_id, images, snapshot_masks(conn, snapshot_id))


def read_holdout_images(conn: Connection, campaign_id: str) -> list[AdapterImage]:
    """The held-out images of a campaign with accepted masks, not quarantined, with those and their effective edits."""
    images = images_of(conn, campaign_id, holdout=True)
    found = _assemble(conn, campaign_id, images, current_masks(conn, campaign_id))
    return [image for image in found if image.targets]


def _assemble(
    conn: Connection, campaign_id: str, images: Iterable[ImageRecord], masks: Iterable[MaskRecord]
) -> list[AdapterImage]:
    by_id = {image.id: image for image in images if image.quarantine_reason is None}
    targets: dict[str, list[AdapterTarget]] = {image_id: [] for image_id in by_id}
    for mask, edits in _with_edits(conn, [mask for mask in masks if mask.image_id in by_id and mask.area > 0]):
        targets[mask.image_id].append(AdapterTarget(mask.id, mask.category_number, mask.rle, edits))
    groups = {sha256: group for sha256, _, group in image_hashes(conn, campaign_id)}
    return [
        AdapterImage(image.ref, groups[image.sha256], tuple(targets[image_id])) for image_id, image in by_id.items()
    ]


def _with_edits(conn: Connection, masks: list[MaskRecord]) -> Iterator[tuple[MaskRecord, tuple[Edit, ...]]]:
    """Each mask with the edits that made it, undone ones taken out; one session's events at a time."""
    for mask in sorted(masks, key=lambda m: m.session_id or ""):
        if mask.session_id is None or mask.seq is None:
            yield mask, ()
            continue
        yield mask, _edits(conn, mask.session_id, mask.instance_id, mask.seq)


def _edits(conn: Connection, session_id: str, instance_id: str, seq: int) -> tuple[Edit, ...]:
    state = fold(event for event in session_events(conn, session_id) if event.seq <= seq)
    return effective_edits(state, instance_id, seq)
