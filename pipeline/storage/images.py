"""Images of a campaign, the files that they came from, and which embeddings are stored. Reads no file."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, select, update
from sqlalchemy.orm import aliased

from pipeline.storage.columns import read_columns
from pipeline.storage.numbers import next_number
from pipeline.storage.sql import batches, fields, insert_into, new_id, one
from pipeline.storage.tallies import tallies
from pipeline.storage.tombstones import is_purged, purged_image
from schemas.campaigns import CampaignSettings, ImageRecord
from schemas.columns import db_now
from schemas.errors import NotFoundError
from schemas.tables import Campaign, Embedding, Image, Source, Task


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a file: its image, and whether that was there already; None when it was purged."""

    image_id: str | None
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A file with the bytes of an image that is read from another one.

    Attributes:
        uri: Of the file.
        image_id: The image.
        image_uri: Of the file that the image is read from.
        is_replaced: Other bytes were found there since.
    """

    uri: str
    image_id: str
    image_uri: str
    is_replaced: bool


def settled_sources(conn: Connection, campaign_id: str) -> pa.Table:
    """The files that need not be read again: registered, or duplicates of an image.

    Not what is quarantined: permissions, limits or formats may have changed.

    Returns:
        `uri` and `version` of each.
    """
    bad = select(Image.id).where(Image.campaign_id == campaign_id, Image.quarantine_reason.is_not(None))
    file = Source.__table__.c
    query = select(file.uri, file.version).where(
        file.campaign_id == campaign_id,
        file.state.in_(("registered", "duplicate")),
        file.image_id.is_not(None),
        file.image_id.not_in(bad),
    )
    return read_columns(conn, query)


def purged_sources(conn: Connection, campaign_id: str) -> dict[str, str]:
    """The files of purged images, which need not be read again either: sha256 of the URI -> version."""
    query = select(Source.uri_sha256, Source.version).where(
        Source.campaign_id == campaign_id, Source.state != "quarantined", Source.image_id.is_(None)
    )
    return {row.uri_sha256: row.version for row in conn.execute(query)}


def image_hashes(conn: Connection, campaign_id: str) -> list[tuple[str, str, str]]:
    """(sha256, perceptual hash, group key) of every image, by number: what near-duplicates are looked for in."""
    query = select(Image.sha256, Image.phash, Image.group_key).where(Image.campaign_id == campaign_id)
    return [(row[0], row[1], row[2]) for row in conn.execute(query.order_by(Image.number))]


def in_holdout(group_key: str, settings: CampaignSettings) -> bool:
    """Whether a near-duplicate group is held out: drawn by its key and the campaign's seed, so it never changes."""
    drawn = hashlib.sha256(f"holdout:{settings.seed}:{group_key}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") < settings.holdout_fraction * 2**64


def add_image(
    conn: Connection,
    campaign_id: str,
    *,
    uri: str,
    file_name: str,
    uri_sha256: str,
    version: str,
    sha256: str,
    phash: str,
    group_key: str,
    width: int,
    height: int,
    format: str,
    size_bytes: int,
    readmit: bool = False,
) -> Added:
    """Register a file: a new image with its task, or a duplicate of one (same bytes), unless that was purged.

    Args:
        conn: Write transaction.
        campaign_id: The campaign.
        uri: fsspec URL or path.
        file_name: Relative POSIX path below the campaign's source.
        uri_sha256: Of `uri`.
        version: Size and ETag or mtime as listed.
        sha256: Of the bytes.
        phash: 64-bit perceptual hash, hex.
        group_key: sha256 of the first image of its near-duplicate group; its own when it is the first.
        width: Pixels, after EXIF orientation.
        height: Pixels, after EXIF orientation.
        format: JPEG, PNG, WEBP, TIFF or BMP.
        size_bytes: Of the file.
        readmit: Take it though it was purged.

    Raises:
        NotFoundError: There is no such campaign.
    """
    number = next_number(conn, Image, campaign_id)
    if is_purged(conn, campaign_id, sha256, readmit=readmit):
        # By the hash of its name alone, so that the file need not be read again: nothing else stays of a purged image.
        unnamed = {"uri": "", "uri_sha256": uri_sha256, "version": version}
        _put_source(conn, campaign_id, **unnamed, state="duplicate", image_id=None, reason=None)
        return Added(None, False)
    source = {"uri": uri, "uri_sha256": uri_sha256, "version": version}
    found = conn.execute(
        select(Image.id, Image.uri).where(Image.campaign_id == campaign_id, Image.sha256 == sha256)
    ).one_or_none()
    if found is not None:  # the same file listed again under a new version is no duplicate of itself
        state = "registered" if found.uri == uri else "duplicate"
        if found.uri == uri:
            _give_another_chance(conn, found.id)
        _put_source(conn, campaign_id, **source, state=state, image_id=found.id, reason=None)
        return Added(found.id, True)
    settings = conn.execute(select(Campaign.settings).where(Campaign.id == campaign_id)).scalar_one()
    image_id = new_id()
    conn.execute(
        insert(Image).values(
            id=image_id,
            campaign_id=campaign_id,
            number=number,
            uri=uri,
            file_name=file_name,
            sha256=sha256,
            phash=phash,
            group_key=group_key,
            holdout=in_holdout(group_key, CampaignSettings(**settings)),
            width=width,
            height=height,
            format=format,
            size_bytes=size_bytes,
            window=settings.get("window"),
            encode_attempts=0,
            created_at=db_now(),
        )
    )
    conn.execute(
        insert(Task).values(
            id=new_id(),
            campaign_id=campaign_id,
            image_id=image_id,
            state="new",
            priority=0.0,
            position=number,
            lease_no=0,
            updated_at=db_now(),
        )
    )
    _put_source(conn, campaign_id, **source, state="registered", image_id=image_id, reason=None)
    return Added(image_id, False)


def duplicate_files(conn: Connection, campaign_id: str) -> list[Duplicate]:
    """The files with the bytes of an image that is read from another one, by URI."""
    own = aliased(Source)
    query = (
        select(Source.uri, Source.image_id, Image.uri.label("image_uri"), own.id.is_(None).label("is_replaced"))
        .join(Image, Image.id == Source.image_id)
        .outerjoin(own, and_(own.image_id == Image.id, own.uri == Image.uri))
        .where(Source.campaign_id == campaign_id, Source.state == "duplicate")
    )
    return [Duplicate(**row._mapping) for row in conn.execute(query.order_by(Source.uri))]


def move_image(conn: Connection, campaign_id: str, file: Duplicate, file_name: str | None) -> bool:
    """Read an image from another file with its bytes from now on; the file that it had is forgotten.

    Args:
        conn: Write transaction.
        campaign_id: The campaign.
        file: As `duplicate_files` says.
        file_name: Relative POSIX path below the campaign's source; None: the image keeps its own.

    Returns:
        Whether the image was still there and read from the file that it had.
    """
    image = update(Image).where(Image.id == file.image_id, Image.uri == file.image_uri)
    values = {"uri": file.uri} if file_name is None else {"uri": file.uri, "file_name": file_name}
    if not conn.execute(image.values(values)).rowcount:
        return False
    _give_another_chance(conn, file.image_id)
    of_image = Source.campaign_id == campaign_id, Source.image_id == file.image_id
    conn.execute(delete(Source).where(*of_image, Source.uri == file.image_uri))
    conn.execute(update(Source).where(*of_image, Source.uri == file.uri).values(state="registered"))
    return True


def add_quarantined(
    conn: Connection, campaign_id: str, *, uri: str, uri_sha256: str, version: str, reason: str
) -> None:
    """Record that a file cannot be used, and why."""
    _put_source(
        conn,
        campaign_id,
        uri=uri,
        uri_sha256=uri_sha256,
        version=version,
        state="quarantined",
        image_id=None,
        reason=_clean(reason),
    )


def get_image(conn: Connection, image_id: str) -> ImageRecord:
    """An image.

    Raises:
        NotFoundError: There is none.
    """
    row = one(conn, select(Image.__table__).where(Image.id == image_id))
    if row is None:
        gone = purged_image(conn, image_id)
        raise NotFoundError(gone.text if gone else f"There is no image {image_id!r}.")
    return image_record(row)


def image_by_sha(conn: Connection, campaign_id: str, sha256: str) -> ImageRecord | None:
    """The campaign's image with these bytes, or None."""
    query = select(Image.__table__).where(Image.campaign_id == campaign_id, Image.sha256 == sha256)
    row = one(conn, query)
    return None if row is None else image_record(row)


def images_of(
    conn: Connection,
    campaign_id: str,
    *,
    holdout: bool | None = None,
    after_number: int = 0,
    limit: int | None = None,
) -> list[ImageRecord]:
    """Images by number; page with `after_number`. `holdout` None: all."""
    query = select(Image.__table__).where(Image.campaign_id == campaign_id, Image.number > after_number)
    if holdout is not None:
        query = query.where(Image.holdout.is_(holdout))
    return [image_record(row) for row in conn.execute(query.order_by(Image.number).limit(limit))]


def count_images(conn: Connection, campaign_id: str) -> int:
    """How many images a campaign has."""
    return sum(tallies(conn, campaign_id, "image").values())


def missing_embeddings(
    conn: Connection, campaign_id: str, model_key: str, limit: int, after: int = 0
) -> list[ImageRecord]:
    """Images, not quarantined, numbered above `after`, of which no embedding is recorded under this key; by number."""
    query = _missing(select(Image.__table__), campaign_id, model_key).where(Image.number > after)
    return [image_record(row) for row in conn.execute(query.order_by(Image.number).limit(limit))]


def count_missing_embeddings(conn: Connection, campaign_id: str, model_key: str) -> int:
    """How many images `missing_embeddings` would list."""
    query = _missing(select(func.count()).select_from(Image.__table__), campaign_id, model_key)
    return int(conn.execute(query).scalar_one())


def _missing(query: Select[Any], campaign_id: str, model_key: str) -> Select[Any]:
    # no join: PostgreSQL would go through all embeddings for a page of images
    of_image = Embedding.image_sha256 == Image.sha256, Embedding.model_key == model_key
    digest = select(Embedding.digest).where(*of_image).scalar_subquery()
    return query.where(Image.campaign_id == campaign_id, Image.quarantine_reason.is_(None), digest.is_(None))


def record_embeddings(conn: Connection, model_key: str, stored: Iterable[tuple[str, str, int]]) -> None:
    """Note stored embeddings as (image sha256, digest of the bytes, size in bytes); the first digest of a key stays.

    Their images' attempts begin anew: they encode.
    """
    for rows in batches(stored):
        values = [
            {"image_sha256": sha, "model_key": model_key, "digest": digest, "size_bytes": size, "created_at": db_now()}
            for sha, digest, size in rows
        ]
        statement = insert_into(conn, Embedding).values(values)
        conn.execute(statement.on_conflict_do_nothing(index_elements=["image_sha256", "model_key"]))
        shas = [row[0] for row in rows]
        conn.execute(update(Image).where(Image.sha256.in_(shas), Image.encode_attempts > 0).values(encode_attempts=0))


def forget_embedding(conn: Connection, sha256: str, model_key: str) -> None:
    """Drop the note that an embedding is stored (its file was found corrupt or missing)."""
    conn.execute(delete(Embedding).where(Embedding.image_sha256 == sha256, Embedding.model_key == model_key))


def embedding_digest(conn: Connection, sha256: str, model_key: str) -> str | None:
    """Digest of the stored embedding's bytes, None when none is recorded."""
    query = select(Embedding.digest).where(Embedding.image_sha256 == sha256, Embedding.model_key == model_key)
    return conn.execute(query).scalar_one_or_none()


def note_encode_attempt(conn: Connection, image_ids: Sequence[str]) -> dict[str, int]:
    """Count an attempt to encode; commit it before decoding, so that an image that kills its actor is found out.

    Returns:
        Attempts so far, this one included, by image id.
    """
    attempts: dict[str, int] = {}
    for ids in batches(image_ids):
        statement = update(Image).where(Image.id.in_(ids)).values(encode_attempts=Image.encode_attempts + 1)
        attempts.update({row[0]: row[1] for row in conn.execute(statement.returning(Image.id, Image.encode_attempts))})
    return attempts


def forget_encode_attempts(conn: Connection, image_ids: Sequence[str]) -> None:
    """Let the attempts of images begin anew: what failed was not their fault."""
    for ids in batches(image_ids):
        conn.execute(update(Image).where(Image.id.in_(ids)).values(encode_attempts=0))


def quarantine_image(conn: Connection, image_id: str, reason: str) -> None:
    """Take an image out of the work (its task is no longer given out), with the reason."""
    conn.execute(update(Image).where(Image.id == image_id).values(quarantine_reason=_clean(reason)))


def image_record(row: Row[Any]) -> ImageRecord:
    """The record of a row with the columns of `images`."""
    return ImageRecord(**fields(row, ImageRecord))


def _give_another_chance(conn: Connection, image_id: str) -> None:
    """To an image whose file was read: whatever kept it from being encoded."""
    bad = update(Image).where(Image.id == image_id, Image.quarantine_reason.is_not(None))
    conn.execute(bad.values(quarantine_reason=None, encode_attempts=0))


def _clean(reason: str) -> str:
    """Text that PostgreSQL takes, of bounded length."""
    return reason.replace("\0", "").encode(errors="replace").decode()[:1000]


def _put_source(conn: Connection, campaign_id: str, **values: Any) -> None:
    statement = insert_into(conn, Source).values(campaign_id=campaign_id, seen_at=db_now(), **values)
    fresh = {name: statement.excluded[name] for name in ("uri", "version", "state", "image_id", "reason", "seen_at")}
    conn.execute(statement.on_conflict_do_update(index_elements=["campaign_id", "uri_sha256"], set_=fresh))
