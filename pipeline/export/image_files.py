"""Image files beside labels, named by number: what an image was called can name no place in the snapshot."""

from pipeline.export.directory import SnapshotDirectory
from pipeline.export.tables import ExportImage
from pipeline.ingest.decode import read_image_bytes
from pipeline.storage.files import storage_error

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}


def image_name(image: ExportImage) -> str:
    """`000001.jpg`."""
    return f"{image.number:06d}.{_SUFFIXES[image.format]}"


def image_bytes(image: ExportImage) -> bytes:
    """An image's file.

    Raises:
        BadImageError, CorruptDataError: It is gone or changed.
        BusyError, ForbiddenError: Its storage does not answer, or refuses.
    """
    try:
        return read_image_bytes(image.ref)
    except OSError as error:
        raise storage_error(error, f"Reading {image.ref.uri}") from error


def put_image(directory: SnapshotDirectory, folder: str, image: ExportImage) -> None:
    """Copy an image into a folder of a snapshot.

    Raises:
        BadImageError, CorruptDataError, BusyError, ForbiddenError: It is gone, changed or not reachable.
    """
    name = f"{folder}/{image_name(image)}"
    directory.local_path(name).write_bytes(image_bytes(image))
    directory.add(name)
