"""Google's and Azure's stores: a whole loop on an emulator, and what is said when they refuse or are silent."""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import adlfs
import fsspec
import gcsfs.core
import gcsfs.retry
import pytest

from pipeline.campaigns import require_source
from pipeline.embeddings.codec import encode_bytes
from pipeline.embeddings.store import EmbeddingStore
from pipeline.export.snapshot import export_snapshot
from pipeline.export.verify import verify_snapshot
from pipeline.imports.source import Source
from pipeline.ingest.scan import ingest
from pipeline.ingest.sources import list_files, require_allowed
from pipeline.storage import files, garbage, stores
from pipeline.storage.campaigns import create_campaign
from pipeline.storage.database import Database
from pipeline.storage.files import open_storage
from schemas.errors import BadInputError, BusyError, ClickloopError, ForbiddenError, NotFoundError
from tests.pipeline.embeddings.test_codec import encoding
from tests.pipeline.ingest.pictures import write_scenes
from tests.stores import Refusing, az_container, azure_environment, google_environment, gs_bucket, gs_server  # noqa: F401


@pytest.mark.parametrize("fixture", ["gs_bucket", "az_container"])
def test_images_embeddings_and_exports_on_it(
    fixture: str, request: pytest.FixtureRequest, sqlite_database: Database, tmp_path: Path
) -> None:
    bucket = request.getfixturevalue(fixture)
    write_scenes(tmp_path / "images", range(3))
    fs, root = open_storage(bucket)
    for path in (tmp_path / "images").iterdir():
        files.write_atomic(fs, f"{root}/photos/{path.name}", path)
    with sqlite_database.begin() as conn:
        campaign = create_campaign(
            conn, campaign_id=str(uuid.uuid4()), name="far", source_url=f"{bucket}/photos", model_id="toy-color",
            model_digest="d" * 64, model_key="k", labels=["cat"],
        )  # fmt: skip
    for source in (f"{bucket}/photos", bucket, f"{bucket}/photos/*"):
        require_source(source)
        require_allowed(source, [bucket])
    assert ingest(sqlite_database, campaign, f"{bucket}/photos").registered == 3
    assert ingest(sqlite_database, campaign, f"{bucket}/photos").unchanged == 3
    assert len(Source(f"{bucket}/photos").files) == 3

    store = EmbeddingStore(f"{bucket}/storage")
    data = encode_bytes(encoding())
    digest = store.put("key", "a" * 64, data)
    assert store.put("key", "a" * 64, encode_bytes(encoding(1))) == digest
    assert store.get("key", "a" * 64, digest) == data
    soon = datetime.now(UTC) + timedelta(days=2)
    assert garbage.collect(sqlite_database, f"{bucket}/storage")["embeddings"].files == 0
    assert garbage.collect(sqlite_database, f"{bucket}/storage", now=soon)["embeddings"].files == 1
    assert not store.exists("key", "a" * 64)

    report = export_snapshot(sqlite_database, campaign, f"{bucket}/out", ["coco", "parquet"])
    assert report.manifest_uri.endswith("/out/manifest.json")
    assert verify_snapshot(f"{bucket}/out").ok
    fs.invalidate_cache()
    facts = fs.find(f"{root}/out", detail=True)[f"{root}/out/coco/instances.json"]
    assert stores.stored_md5(facts) == hashlib.md5(fs.cat_file(f"{root}/out/coco/instances.json")).hexdigest()
    with pytest.raises(BadInputError, match="holds a snapshot already"):
        export_snapshot(sqlite_database, campaign, f"{bucket}/out", ["coco"])
    with pytest.raises(NotFoundError, match="no such bucket"):
        export_snapshot(sqlite_database, campaign, f"{bucket}-missing/out", ["coco"])
    with pytest.raises(BadInputError, match="nothing at"):
        require_source(f"{bucket}-missing/photos")


@pytest.fixture(params=["gs", "az"])
def refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | str], str]]:
    """Starts a server that answers so, and gives the URL of a bucket on it. The clients' own pauses are short here."""
    running: list[Refusing] = []

    async def no_pause(seconds: float) -> None:
        """In place of half a minute in all."""

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=no_pause))
    monkeypatch.setattr(stores, "SILENCE_S", 0.2)
    for name in ("initial_backoff", "increment_base", "random_jitter_range"):
        monkeypatch.setitem(stores._AZURE_RETRIES, name, 0)
    monkeypatch.setitem(fsspec.config.conf, "abfs", {"read_timeout": 0.5})
    clients = gcsfs.core.GCSFileSystem, adlfs.AzureBlobFileSystem

    def start(answer: int | str) -> str:
        running.append(Refusing(answer))
        environment = google_environment if request.param == "gs" else azure_environment
        for name, value in environment(running[-1].url).items():
            monkeypatch.setenv(name, value)
        for client in clients:
            client.clear_instance_cache()
        return f"{request.param}://bucket"

    yield start
    for client in clients:
        client.clear_instance_cache()
    for server in running:
        server.close()


def failure(call: Callable[[], object]) -> ClickloopError:
    """What a call's failure is to the user."""
    with pytest.raises((OSError, ClickloopError)) as caught:
        call()
    error = caught.value
    return error if isinstance(error, ClickloopError) else files.storage_error(error, "Calling")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_final_and_says_so(refusing: Callable[[int | str], str], status: int) -> None:
    bucket = refusing(status)
    fs, root = open_storage(bucket)

    def wait(seconds: float, why: str) -> None:
        raise AssertionError(why)

    with files.patience(60, wait):
        for call in (
            lambda: files.read_bytes(fs, f"{root}/x"),
            lambda: files.write_atomic(fs, f"{root}/x", b"new"),
            lambda: files.put_if_absent(fs, f"{root}/x", b"new"),
            lambda: files.exists(fs, f"{root}/x"),
            lambda: files.remove(fs, f"{root}/x"),
            lambda: files.remove_folder(fs, f"{root}/x"),
            lambda: require_source(f"{bucket}/photos"),
            lambda: require_source(bucket),
        ):
            assert isinstance(failure(call), ForbiddenError)
        for source in (bucket, f"{bucket}/photos"):
            with pytest.raises(BadInputError, match="Not allowed to read"):
                list_files(source)


@pytest.mark.parametrize("answer", [429, 500, 503, "cut"])
def test_who_does_not_answer_is_asked_again_until_patience_ends(
    refusing: Callable[[int | str], str], answer: int | str
) -> None:
    bucket = refusing(answer)
    fs, root = open_storage(bucket)
    waits: list[str] = []
    for call in (
        lambda: files.read_bytes(fs, f"{root}/x"),
        lambda: files.write_atomic(fs, f"{root}/x", b"new"),
        lambda: files.put_if_absent(fs, f"{root}/x", b"new"),
        lambda: files.remove_folder(fs, f"{root}/x"),
        lambda: require_source(f"{bucket}/photos"),
        lambda: require_source(bucket),
        lambda: list_files(f"{bucket}/photos"),
    ):
        waits.clear()
        with files.patience(0.01, lambda seconds, why: waits.append(why)):
            assert isinstance(failure(call), BusyError)
        assert len(waits) >= 1 and all(waits)


def test_silence_ends(refusing: Callable[[int | str], str]) -> None:
    bucket = refusing("silent")
    fs, root = open_storage(bucket)
    with files.patience(0):
        assert isinstance(failure(lambda: files.read_bytes(fs, f"{root}/x")), BusyError)


def test_what_is_not_there_and_what_is_wrong(refusing: Callable[[int | str], str]) -> None:
    fs, root = open_storage(bucket := refusing(404))
    with pytest.raises(FileNotFoundError):
        files.read_bytes(fs, f"{root}/x")
    assert isinstance(failure(lambda: files.write_atomic(fs, f"{root}/x", b"new")), NotFoundError)
    assert not files.exists(fs, f"{root}/x")
    assert isinstance(failure(lambda: list_files(bucket)), BadInputError)
    fs, root = open_storage(refusing(400))
    assert isinstance(failure(lambda: files.read_bytes(fs, f"{root}/x")), BadInputError)
