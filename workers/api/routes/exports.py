"""Finished exports of a campaign, and their files where they lie in a place that this gateway may read from."""

import tarfile
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from pipeline.export.manifest import read_manifest
from pipeline.ingest.sources import require_allowed
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.files import leaves_root, open_storage, with_retry
from pipeline.storage.requests import get_request, list_requests
from schemas.campaigns import RequestRecord
from schemas.errors import BadInputError, ForbiddenError, NotFoundError
from schemas.exports import LISTED_FILES, ExportFile, ExportRecord
from workers.api.deps import CallerDep, Services, ServicesDep, envelope
from workers.api.errors import of_bytes
from workers.api.work import in_thread

router = APIRouter(tags=["exports"])

MAX_EXPORTS = 50
BLOCK_BYTES = 1 << 20


@router.get("/api/campaigns/{campaign}/exports")
async def index(campaign: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The campaign's finished exports, newest first."""

    def load(conn: Connection) -> list[RequestRecord]:
        campaign_id = get_campaign(conn, campaign).id
        return list_requests(conn, campaign_id, kind="export", state="done", limit=MAX_EXPORTS)

    requests = [request for request in await services.read(load) if _place(request)[0]]
    found = await in_thread(lambda: [_record(services, request) for request in requests])
    return envelope([record.model_dump(mode="json") for record in found], len(found))


@router.get(
    "/api/requests/{request_id}/files/{path:path}",
    response_class=StreamingResponse,
    responses=of_bytes("application/octet-stream"),
)
async def download(request_id: str, path: str, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """A file that a finished export names, if the export lies in the storage, the workspace or a configured root."""
    caller.need("export")
    request = await services.read(lambda conn: get_request(conn, request_id))
    folder, _ = _place(request)
    if request.kind != "export" or not folder or path not in await in_thread(_files, services, request):
        raise NotFoundError(f"Request {request_id} exported no file {path[:200]!r}.")
    url = f"{folder}/{path}"
    await in_thread(_check, services, url)
    size, blocks = await in_thread(_open, url)
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(path.rpartition('/')[2], safe='')}",
        "Cache-Control": "private, no-store",
    }
    return StreamingResponse(blocks, media_type="application/octet-stream", headers=headers)


@router.get(
    "/api/requests/{request_id}/archive", response_class=StreamingResponse, responses=of_bytes("application/x-tar")
)
async def archive(request_id: str, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """All files of a finished export as one tar, made while it is sent."""
    caller.need("export")
    request = await services.read(lambda conn: get_request(conn, request_id))
    folder, _ = _place(request)
    if request.kind != "export" or not folder:
        raise NotFoundError(f"Request {request_id} is no finished export.")
    name = f"snapshot-{(request.result or {}).get('snapshot', 0)}"
    files = [(f"{folder}/{path}", f"{name}/{path}") for path in await in_thread(_files, services, request)]
    await in_thread(_check, services, *(url for url, _ in files))
    blocks = in_tar(files, request.updated_at.timestamp())
    headers = {"Content-Disposition": f'attachment; filename="{name}.tar"', "Cache-Control": "private, no-store"}
    return StreamingResponse(blocks, media_type="application/x-tar", headers=headers)


def in_tar(files: Sequence[tuple[str, str]], modified: float) -> Iterator[bytes]:
    """A tar of (url, name in it), block by block.

    Raises:
        NotFoundError: A file cannot be read any more; what was sent is then cut off, which unpacking tells.
    """
    for url, name in files:
        size, blocks = _open(url)
        facts = tarfile.TarInfo(name)
        facts.size, facts.mtime, facts.mode = size, modified, 0o644
        yield facts.tobuf(tarfile.PAX_FORMAT)
        yield from blocks
        yield b"\0" * (-size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _record(services: Services, request: RequestRecord) -> ExportRecord:
    result = request.result or {}
    folder, manifest = _place(request)
    files = [ExportFile(path=file["path"], bytes=file["bytes"]) for file in result.get("files", [])]
    return ExportRecord(
        request_id=request.id,
        created_at=request.updated_at,
        snapshot=result.get("snapshot", 0),
        uri=folder,
        counts=result.get("counts", {}),
        downloadable=_may_read(services, folder),
        files=[ExportFile(path=manifest, bytes=None), *files[: LISTED_FILES - 1]],
        num_files=1 + result.get("num_files", len(files)),
        num_bytes=result.get("num_bytes", sum(file.bytes or 0 for file in files)),
        since_snapshot=result.get("since_snapshot"),
    )


def _place(request: RequestRecord) -> tuple[str, str]:
    """The export's folder and its manifest's name, empty where it was stopped."""
    folder, _, manifest = str((request.result or {}).get("manifest_uri", "")).rpartition("/")
    return folder, manifest


def _files(services: Services, request: RequestRecord) -> list[str]:
    """Paths below the folder of what its manifest lists, before them the manifest's.

    Raises:
        NotFoundError: The export is not there any more.
        ForbiddenError: It lies in a place that is not handed out.
    """
    folder, name = _place(request)
    url = f"{folder}/{name}"
    _check(services, url)
    _, _, manifest = read_manifest(url)
    paths = [file["path"] for file in manifest["files"]]
    return [name, *(path for path in paths if not leaves_root(path))]


def _check(services: Services, *urls: str) -> None:
    """Refuse places that are neither the storage, the workspace nor below a configured root; links are followed."""
    settings = services.settings
    roots = [*settings.source_roots, str(settings.workspace.resolve()), settings.resolved_storage_url]
    for url in urls:
        require_allowed(url, roots)


def _may_read(services: Services, url: str) -> bool:
    try:
        _check(services, url)
    except (ForbiddenError, BadInputError):
        return False
    return True


def _open(url: str) -> tuple[int, Iterator[bytes]]:
    fs, path = open_storage(url)
    try:
        size = int(with_retry(fs, lambda: fs.size(path)) or 0)
        file = with_retry(fs, lambda: fs.open(path, "rb"))
    except OSError as error:
        raise NotFoundError(f"{url} cannot be read any more.") from error

    def blocks() -> Iterator[bytes]:
        with file:
            while block := file.read(BLOCK_BYTES):
                yield block

    return size, blocks()
