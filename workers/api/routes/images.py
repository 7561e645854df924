"""An image's bytes, as they were ingested, and as a small picture."""

from typing import Annotated

import fsspec
from fastapi import APIRouter, Header, Query
from fastapi.responses import Response

from pipeline.ingest.thumbnails import thumbnail
from pipeline.storage.images import get_image
from schemas.campaigns import ImageRecord
from schemas.errors import NotFoundError
from workers.api.deps import CallerDep, ServicesDep
from workers.api.errors import of_bytes
from workers.api.work import in_thread

router = APIRouter(prefix="/api/images", tags=["images"])

_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}
_OTHER = "application/octet-stream"


@router.get(
    "/{image_id}/content",
    response_class=Response,
    responses=of_bytes(*_TYPES.values(), _OTHER, cached=True),
)
async def content(
    image_id: str, services: ServicesDep, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The file. Its ETag is the sha256 of the bytes, so a browser keeps it."""
    image = await services.read(lambda conn: get_image(conn, image_id))
    headers = {"ETag": f'"{image.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    data = await in_thread(_read, image)
    kind = next((kind for start, kind in _TYPES.items() if data.startswith(start)), _OTHER)
    return Response(data, media_type=kind, headers=headers)


@router.get("/{image_id}/thumbnail", response_class=Response, responses=of_bytes("image/jpeg", cached=True))
async def small(
    image_id: str,
    services: ServicesDep,
    caller: CallerDep,
    size: Annotated[int, Query(ge=32, le=1600)] = 320,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The image as a JPEG whose longest side has at most `size` pixels, upright."""
    image = await services.read(lambda conn: get_image(conn, image_id))
    headers = {"ETag": f'"{image.sha256}-{size}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    async with services.thumbnails:
        data = await in_thread(lambda: thumbnail(_read(image), size))
    return Response(data, media_type="image/jpeg", headers=headers)


def _read(image: ImageRecord) -> bytes:
    try:
        with fsspec.open(image.uri, "rb") as file:
            data: bytes = file.read()
    except OSError as error:
        raise NotFoundError(f"The file of image {image.id} cannot be read any more at its source.") from error
    return data
