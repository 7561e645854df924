"""A bucket that goes away while a snapshot is written to it: the same command goes on and ends with the same bytes."""

import tempfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.export import directory
from pipeline.export.directory import NOTE
from pipeline.export.manifest import MANIFEST
from pipeline.export.snapshot import FORMATS, export_snapshot
from pipeline.export.verify import verify_snapshot
from pipeline.storage import purge
from pipeline.storage.files import patience
from pipeline.storage.snapshots import list_snapshots
from schemas.errors import BadImageError, BadInputError, BusyError, ForbiddenError
from tests.pipeline.export.labelled import Labelled, blob
from tests.s3 import object_names
from tests.s3_faults import FaultyS3

pytestmark = pytest.mark.s3
FAULTS = [
    ("ServiceUnavailable", BusyError, 8),
    ("ExpiredToken", ForbiddenError, 8),
    ("AccessDenied", ForbiddenError, 8),
    ("ExpiredToken", ForbiddenError, 0),
]


def objects(url: str) -> dict[str, bytes]:
    """Every object's bytes by relative name."""
    fs, root = fsspec.core.url_to_fs(url)
    return {name: fs.cat_file(f"{root}/{name}") for name in object_names(url)}


def export(world: Labelled, url: str, **options: Any) -> str:
    """The snapshot that was written."""
    return export_snapshot(world.database, world.campaign, url, list(FORMATS), **options).snapshot_id


def require_undisturbed(world: Labelled, url: str, snapshot_id: str) -> None:
    """The objects at the URL are those of an export of the same snapshot that nothing disturbed."""
    export(world, f"{url}-undisturbed", snapshot_id=snapshot_id)
    assert objects(url) == objects(f"{url}-undisturbed")
    assert verify_snapshot(url).ok


def test_a_bucket_that_comes_back(world: Labelled, faulty_s3: FaultyS3, s3_bucket: str) -> None:
    waits: list[str] = []
    faulty_s3.go_away("ServiceUnavailable", method="PUT", after=8, count=3)
    with patience(60, lambda seconds, why: waits.append(why)):
        snapshot_id = export(world, f"{s3_bucket}/out")
    assert waits
    require_undisturbed(world, f"{s3_bucket}/out", snapshot_id)


@pytest.mark.parametrize(("fault", "error", "puts"), FAULTS)
def test_the_same_command_goes_on(
    world: Labelled, faulty_s3: FaultyS3, s3_bucket: str, fault: str, error: type[Exception], puts: int
) -> None:
    url = f"{s3_bucket}/out"
    faulty_s3.go_away(fault, method="PUT", after=puts)
    with patience(0), pytest.raises(error, match="again"):
        export(world, url)
    faulty_s3.come_back()
    left = object_names(url)
    assert len(left) == puts and MANIFEST not in left
    world.label(world.images[3], [(1, blob(9))])  # of no concern to what began before
    faulty_s3.served.clear()
    snapshot_id = export(world, url)
    put = [path for method, path in faulty_s3.served if method == "PUT"]
    assert not [name for name in left if name != NOTE and any(path.endswith(f"/{name}") for path in put)]
    require_undisturbed(world, url, snapshot_id)
    with world.database.connect() as conn:
        assert len(list_snapshots(conn, world.campaign_id)) == 1


def test_what_a_killed_one_had_staged_is_removed(
    world: Labelled, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    killed = directory.SnapshotDirectory(f"{s3_bucket}/out")
    killed.local_path("masks/1.png").write_bytes(b"x")  # a kill runs no clean-up
    elsewhere = directory.SnapshotDirectory(f"{s3_bucket}/elsewhere")
    assert len(list(folder.iterdir())) == 2
    export(world, f"{s3_bucket}/out")
    assert list(folder.iterdir()) == [elsewhere.local_folder("")]


def test_what_another_export_left_is_not_mixed_with(world: Labelled, faulty_s3: FaultyS3, s3_bucket: str) -> None:
    url = f"{s3_bucket}/out"
    faulty_s3.go_away("SlowDown", method="PUT", after=8)
    with patience(0), pytest.raises(BusyError):
        export(world, url)
    faulty_s3.come_back()
    before = object_names(url)
    with pytest.raises(BadInputError, match="other options"):
        export(world, url, filters={"categories": [1]})
    assert object_names(url) == before


def test_a_damaged_object_of_an_unfinished_export_is_put_again(
    world: Labelled, faulty_s3: FaultyS3, s3_bucket: str
) -> None:
    url = f"{s3_bucket}/out"
    faulty_s3.go_away("SlowDown", method="PUT", after=8)
    with patience(0), pytest.raises(BusyError):
        export(world, url)
    faulty_s3.come_back()
    fs, root = fsspec.core.url_to_fs(url)
    name = next(name for name in object_names(url) if name != NOTE)
    size = fs.info(f"{root}/{name}")["size"]
    fs.pipe_file(f"{root}/{name}", b"x" * size)
    require_undisturbed(world, url, export(world, url))


def test_objects_that_vanish_meanwhile_are_missed(world: Labelled, s3_bucket: str) -> None:
    url, gone = f"{s3_bucket}/out", list[str]()

    def empty_the_bucket() -> bool:
        if not gone and len(there := object_names(url)) > 8:
            gone.extend(there)
            fsspec.filesystem("s3").rm([f"{url}/{name}" for name in there])
        return False

    with pytest.raises(BusyError, match="not there any more"):
        export(world, url, should_stop=empty_the_bucket)
    assert gone and MANIFEST not in object_names(url)
    require_undisturbed(world, url, export(world, url))
    with world.database.connect() as conn:
        assert len(list_snapshots(conn, world.campaign_id)) == 1


def test_an_export_that_only_has_its_note_left_is_finished(
    world: Labelled, faulty_s3: FaultyS3, s3_bucket: str
) -> None:
    url = f"{s3_bucket}/out"
    export(world, f"{url}-before")
    faulty_s3.go_away("SlowDown", method="PUT", after=len(object_names(f"{url}-before")) + 1)
    with patience(0), pytest.raises(BusyError):
        export(world, url)
    faulty_s3.come_back()
    assert {MANIFEST, NOTE} < set(object_names(url))
    require_undisturbed(world, url, export(world, url))
    with pytest.raises(BadInputError, match="holds a snapshot already"):
        export(world, url)


def test_ctrl_c_at_the_very_end_leaves_no_manifest_without_its_files(
    world: Labelled, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3_bucket}/out"

    def interrupted(fs: Any, path: str) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(directory, "remove", interrupted)  # of the note, once the manifest is there
    with pytest.raises(KeyboardInterrupt):
        export(world, url)
    assert object_names(url) == []


def test_a_source_that_goes_away_is_said(world: Labelled, tmp_path: Path, faulty_s3: FaultyS3, s3_bucket: str) -> None:
    fs = fsspec.filesystem("s3")
    uris = {}
    for image in world.images:
        uris[image.id] = f"{s3_bucket}/images/{image.file_name}"
        fs.put_file(image.uri, uris[image.id])
    world.move(uris)
    faulty_s3.go_away("SlowDown", method="GET", after=1)
    with patience(0), pytest.raises(BusyError, match="Reading s3://"):
        export(world, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    faulty_s3.go_away("ExpiredToken", method="GET", after=1)
    with pytest.raises(ForbiddenError, match="Reading s3://"):
        export(world, str(tmp_path / "out"))
    faulty_s3.come_back()
    fs.rm_file(uris[world.images[0].id])
    with pytest.raises(BadImageError):
        export(world, f"{s3_bucket}/out")
    assert object_names(f"{s3_bucket}/out") == []


def test_what_was_purged_meanwhile_is_not_left_beside_the_export(
    world: Labelled, faulty_s3: FaultyS3, s3_bucket: str, tmp_path: Path
) -> None:
    url = f"{s3_bucket}/out"
    faulty_s3.go_away("ExpiredToken", method="PUT", after=14)
    with pytest.raises(ForbiddenError):
        export(world, url)
    faulty_s3.come_back()
    first = world.images[0]
    before = [name for name in object_names(url) if "000001." in name]
    assert before, object_names(url)
    with world.database.connect() as conn:
        scope = purge.find_scope(conn, world.campaign_id, str(first.number))
    purge.purge(world.database, scope, str(tmp_path / "storage"), purged_by="me")
    require_undisturbed(world, url, export(world, url))
