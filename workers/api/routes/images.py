"""An image as a browser shows it: its file, or a rendition where browsers cannot, and a small picture."""

import hashlib
from typing import Annotated

import fsspec
from fastapi import APIRouter, Header, Query
from fastapi.responses import Response

from pipeline.ingest.decode import browser_type
from pipeline.ingest.renditions import rendition
from pipeline.ingest.thumbnails import thumbnail
from pipeline.storage.images import get_image
from schemas.campaigns import ImageRecord
from schemas.errors import NotFoundError
from workers.api.deps import CallerDep, Services, ServicesDep
from workers.api.errors import of_bytes
from workers.api.work import in_thread

router = APIRouter(prefix="/api/images", tags=["images"])

_TYPES = ("image/jpeg", "image/png", "image/webp")


@router.get(
    "/{image_id}/content",
    response_class=Response,
    responses=of_bytes(*_TYPES, cached=True),
)
async def content(
    image_id: str, services: ServicesDep, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The file; of formats that browsers do not show, a rendition with the same pixels in the same places.

    The ETag is the sha256 of the file, so a browser keeps it.
    """
    image = await services.read(lambda conn: get_image(conn, image_id))
    headers = {"ETag": f'"{image.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    made = services.renditions.get((image.sha256, image.window))
    if made is None:
        data = await in_thread(_read, image)
        kind = await in_thread(browser_type, data)
        made = (data, kind) if kind is not None else await _render(image, data, services)
    return Response(made[0], media_type=made[1], headers=headers)


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
        data = await in_thread(lambda: thumbnail(_read(image), size, services.settings.max_image_pixels, image.window))
    return Response(data, media_type="image/jpeg", headers=headers)


async def _render(image: ImageRecord, data: bytes, services: Services) -> tuple[bytes, str]:
    """One at a time, since each takes several bytes of memory per pixel; what was made last is kept."""
    async with services.rendering:
        key = image.sha256, image.window
        made = services.renditions.get(key)
        if made is None:
            made = await in_thread(rendition, data, services.settings.max_image_pixels, image.window)
            services.renditions.put(key, made, len(made[0]))
        return made


def _read(image: ImageRecord) -> bytes:
    try:
        with fsspec.open(image.uri, "rb") as file:
            data: bytes = file.read()
    except OSError as error:
        raise NotFoundError(f"The file of image {image.id} cannot be read any more at its source.") from error
    if hashlib.sha256(data).hexdigest() != image.sha256:  # its masks are of another picture
        raise NotFoundError(f"The file of image {image.id} has changed since it was ingested. Put it back.")
    return data
