"""An image as a browser shows it: its file, or a rendition where browsers cannot, a small picture, and tiles."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import Response

from pipeline.ingest.decode import browser_type, read_image_bytes
from pipeline.ingest.renditions import rendition
from pipeline.ingest.thumbnails import thumbnail
from pipeline.ingest.tiles import MAX_LEVEL, TILE_PX, Tiles, cut_tiles, level_size
from pipeline.memory import give_back_freed_memory
from pipeline.storage.images import get_image
from schemas.campaigns import ImageRecord
from schemas.errors import BadImageError, BusyError, CorruptDataError, NotFoundError
from workers.api.deps import MAX_NUMBER, CallerDep, Services, ServicesDep
from workers.api.errors import of_bytes
from workers.api.work import in_thread
from workers.lru import K, Lru, V

router = APIRouter(prefix="/api/images", tags=["images"])

_TYPES = ("image/jpeg", "image/png", "image/webp")
_LARGE_PIXELS = 12_000_000
"""Images with more are decoded one at a time, for whatever is drawn, and what that took of the heap is given back."""


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
    headers = _headers(image.sha256)
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
    headers = _headers(f"{image.sha256}-{size}")
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    async with services.rendering if _is_large(image) else services.thumbnails:
        limit = services.settings.max_image_pixels
        data = await _drawn(image, lambda: thumbnail(_read(image), size, limit, image.window))
    return Response(data, media_type="image/jpeg", headers=headers)


@router.get(
    "/{image_id}/tiles/{level}/{column}/{row}", response_class=Response, responses=of_bytes("image/jpeg", cached=True)
)
async def tile(
    image_id: str,
    level: Annotated[int, Path(ge=0, le=MAX_LEVEL)],
    column: Annotated[int, Path(ge=0, le=MAX_NUMBER)],
    row: Annotated[int, Path(ge=0, le=MAX_NUMBER)],
    services: ServicesDep,
    caller: CallerDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A part of a large image as a JPEG: at most 1024 pixels a side of the image (level 0) or its half, quarter, ...

    The pixels are those of the image's other forms; tile (0, 0) is at the upper left.
    """
    image = await services.read(lambda conn: get_image(conn, image_id))
    headers = _headers(f"{image.sha256}-{level}-{column}-{row}")
    width, height = level_size(image.width, image.height, level)
    if column * TILE_PX >= width or row * TILE_PX >= height:
        raise NotFoundError(f"Level {level} of image {image.id} is {width}x{height} pixels: there is no such tile.")
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    tiles = await _tiles(image, level, services)
    return Response(tiles[column, row], media_type="image/jpeg", headers=headers)


async def _tiles(image: ImageRecord, level: int, services: Services) -> Tiles:
    """A level whole, since decoding is most of the work."""
    size, limit = (image.width, image.height), services.settings.max_image_pixels
    return await _made(
        services,
        image,
        services.tiles,
        (image.sha256, image.window, level),
        lambda: cut_tiles(_read(image), size, level, limit, image.window),
        lambda tiles: sum(map(len, tiles.values())),
    )


async def _render(image: ImageRecord, data: bytes, services: Services) -> tuple[bytes, str]:
    limit = services.settings.max_image_pixels
    return await _made(
        services,
        image,
        services.renditions,
        (image.sha256, image.window),
        lambda: rendition(data, limit, image.window),
        lambda made: len(made[0]),
    )


async def _made(
    services: Services, image: ImageRecord, kept: Lru[K, V], key: K, make: Callable[[], V], size_of: Callable[[V], int]
) -> V:
    """What was made last, or made now: one at a time, since each takes several bytes of memory per pixel."""
    found = kept.get(key)
    if found is not None:
        return found
    async with services.rendering:
        found = kept.get(key)
        if found is None:
            found = await _drawn(image, make)
            kept.put(key, found, size_of(found))
        return found


def _is_large(image: ImageRecord) -> bool:
    return image.width * image.height > _LARGE_PIXELS


async def _drawn(image: ImageRecord, draw: Callable[[], V]) -> V:
    """What is drawn from an image's pixels, in a thread which then holds none of them."""

    def work() -> V:
        drawn = draw()
        if _is_large(image):
            give_back_freed_memory()
        return drawn

    return await in_thread(work)


def _headers(tag: str) -> dict[str, str]:
    """Of what never changes under its tag, so that a browser keeps it."""
    return {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=31536000, immutable"}


def _read(image: ImageRecord) -> bytes:
    try:
        return read_image_bytes(image.ref)
    except CorruptDataError as error:  # its masks are of another picture
        raise NotFoundError(f"The file of image {image.id} has changed since it was ingested. Put it back.") from error
    except (BadImageError, FileNotFoundError, PermissionError) as error:
        raise NotFoundError(f"The file of image {image.id} cannot be read any more at its source.") from error
    except OSError as error:
        raise BusyError(f"The source of image {image.id} does not answer: {error}. Try again.") from error
