"""Ingest on real databases: content once, resumable, bad files with the reason."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from pipeline.ingest import moved, scan
from pipeline.ingest.decode import decode_image, read_image, read_image_bytes
from pipeline.ingest.dedupe import GroupIndex
from pipeline.ingest.scan import IngestReport, ingest
from pipeline.storage import files, purge
from pipeline.storage.campaigns import campaign_status, create_campaign
from pipeline.storage.database import Database
from pipeline.storage.files import read_bytes
from pipeline.storage.images import (
    image_hashes,
    images_of,
    in_holdout,
    missing_embeddings,
    note_encode_attempt,
    quarantine_image,
)
from schemas.campaigns import CampaignRecord, CampaignSettings, ImageRecord
from schemas.errors import BadInputError, BusyError
from schemas.tables import Source
from tests.pipeline.ingest.pictures import encoded, scene, write_scenes


def new_campaign(
    database: Database, holdout_fraction: float = 0.2, window: tuple[float, float] | None = None
) -> CampaignRecord:
    """An empty campaign."""
    with database.begin() as conn:
        return create_campaign(
            conn,
            campaign_id=str(uuid.uuid4()),
            name=f"campaign {uuid.uuid4()}",
            source_url="/images",
            model_id="toy-color",
            model_digest="d" * 64,
            model_key="k",
            settings=CampaignSettings(holdout_fraction=holdout_fraction, window=window),
        )


def catalogue(database: Database, campaign: CampaignRecord) -> list[ImageRecord]:
    """The campaign's images by number."""
    with database.connect() as conn:
        return images_of(conn, campaign.id)


def quarantined(database: Database, campaign: CampaignRecord) -> dict[str, str]:
    """Reasons by file name."""
    with database.connect() as conn:
        return {Path(q["uri"]).name: q["reason"] for q in campaign_status(conn, campaign.id).quarantined}


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    """(registered, duplicates, quarantined, unchanged)."""
    return report.registered, report.duplicates, report.quarantined, report.unchanged


def test_registers_reports_and_does_nothing_twice(database: Database, tmp_path: Path) -> None:
    tmp_path = tmp_path / "images"
    write_scenes(tmp_path, range(6))
    (tmp_path / "copy.png").write_bytes((tmp_path / "scene-000.png").read_bytes())
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(encoded(scene(9), "JPEG")[:-100])
    (tmp_path / "scan.tif").write_bytes(b"II*\0")
    (tmp_path / "photo.heic").touch()
    (tmp_path / "notes.txt").touch()
    campaign = new_campaign(database)
    seen: list[dict[str, int]] = []
    report = ingest(database, campaign, str(tmp_path), progress=seen.append)
    assert counts(report) == (6, 1, 5, 0)
    assert (report.files, report.ignored, report.stopped) == (12, 1, False)
    assert seen[-1] == {"done": 12, "total": 12}
    found = catalogue(database, campaign)
    assert [image.number for image in found] == [1, 2, 3, 4, 5, 6]
    assert [image.file_name for image in found][:2] == ["copy.png", "scene-001.jpg"]
    assert all((image.width, image.height) == (80, 60) for image in found)
    reasons = quarantined(database, campaign)
    assert "0 bytes" in reasons["empty.jpg"]
    assert "Neither" in reasons["text.png"]
    assert "cut off" in reasons["cut.jpg"]
    assert "TIFF" in reasons["scan.tif"]
    assert ".heic" in reasons["photo.heic"]
    again = ingest(database, campaign, str(tmp_path))
    assert counts(again) == (0, 0, 5, 7)
    assert catalogue(database, campaign) == found


def test_any_name_is_known_again(database: Database, tmp_path: Path) -> None:
    names = ["two\nlines.png", "two\\nlines.png", "a\\b.png", "a\\\nb.png", "tab\t%5C?#.png", "\n.png"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(scene(number)))
    campaign = new_campaign(database)
    assert counts(ingest(database, campaign, str(tmp_path))) == (6, 0, 0, 0)
    assert counts(ingest(database, campaign, str(tmp_path))) == (0, 0, 0, 6)
    (tmp_path / names[3]).unlink()
    report = ingest(database, campaign, str(tmp_path))
    assert (report.unchanged, report.gone_files) == (5, [str(tmp_path / names[3])])


def test_a_repaired_file_is_read_again_and_a_new_one_added(sqlite_database: Database, tmp_path: Path) -> None:
    write_scenes(tmp_path, range(2))
    (tmp_path / "late.png").write_bytes(b"broken")
    campaign = new_campaign(sqlite_database)
    ingest(sqlite_database, campaign, str(tmp_path))
    (tmp_path / "late.png").write_bytes(encoded(scene(7)))
    write_scenes(tmp_path, range(8, 9))
    assert counts(ingest(sqlite_database, campaign, str(tmp_path))) == (2, 0, 0, 2)
    assert quarantined(sqlite_database, campaign) == {}
    assert [image.file_name for image in catalogue(sqlite_database, campaign)][2:] == ["late.png", "scene-008.png"]


def test_a_quarantined_file_gets_another_chance_though_its_listing_is_the_same(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "big.png").write_bytes(encoded(scene(0, 200, 200)))
    campaign = new_campaign(database)
    assert ingest(database, campaign, str(tmp_path), max_pixels=10_000).quarantined == 1
    assert counts(ingest(database, campaign, str(tmp_path))) == (1, 0, 0, 0)
    assert quarantined(database, campaign) == {}


def test_an_image_that_could_not_be_encoded_gets_another_chance(database: Database, tmp_path: Path) -> None:
    write_scenes(tmp_path, range(2))
    campaign = new_campaign(database)
    ingest(database, campaign, str(tmp_path))
    for image in catalogue(database, campaign):
        with database.begin() as conn:
            note_encode_attempt(conn, [image.id])
            quarantine_image(conn, image.id, "gone when it was to be encoded")
    (tmp_path / "scene-001.jpg").write_bytes(encoded(scene(5), "JPEG"))
    assert set(quarantined(database, campaign)) == {"scene-000.png", "scene-001.jpg"}
    assert counts(ingest(database, campaign, str(tmp_path))) == (1, 1, 0, 0)
    assert quarantined(database, campaign) == {}
    with database.connect() as conn:
        waiting = missing_embeddings(conn, campaign.id, "k", 10)
    assert [image.number for image in waiting] == [1, 3]
    assert counts(ingest(database, campaign, str(tmp_path))) == (0, 0, 0, 2)


@pytest.mark.parametrize("name", ["cut.tif", "cut.webp", "cut.bmp", "cut.jpg", "cut.png"])
def test_a_file_that_was_cut_off_is_picked_up_once_it_is_whole(
    sqlite_database: Database, tmp_path: Path, name: str
) -> None:
    format = {".jpg": "JPEG", ".tif": "TIFF"}.get(name[3:], name[4:].upper())
    data = encoded(scene(2), format)
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    campaign = new_campaign(sqlite_database)
    assert counts(ingest(sqlite_database, campaign, str(tmp_path))) == (0, 0, 1, 0)
    assert quarantined(sqlite_database, campaign)[name]
    (tmp_path / name).write_bytes(data)
    assert counts(ingest(sqlite_database, campaign, str(tmp_path))) == (1, 0, 0, 0)
    assert quarantined(sqlite_database, campaign) == {}


@given(
    st.lists(st.integers(0, 2**12 - 1), min_size=1, max_size=40),
    st.floats(0.05, 0.9),
    st.integers(0, 100),
    st.integers(1, 40),
)
def test_no_group_straddles_the_holdout(bits: list[int], fraction: float, seed: int, first: int) -> None:
    """However hashes lie about each other and whichever pass finds an image: groups are drawn whole."""
    settings = CampaignSettings(holdout_fraction=fraction, seed=seed)
    hashes = [f"{value * 0x0001000100010001 % 2**64:016x}" for value in bits]
    rows: list[tuple[str, str, str]] = []
    for part in (range(len(bits))[:first], range(len(bits))[first:]):
        index = GroupIndex((phash, group) for _, phash, group in rows)
        for number in part:
            sha = hashlib.sha256(str(number).encode()).hexdigest()
            rows.append((sha, hashes[number], index.assign(hashes[number], sha)))
    leaders = {sha: phash for sha, phash, group in rows if sha == group}
    drawn: dict[str, set[bool]] = {}
    for _, phash, group in rows:
        assert (int(phash, 16) ^ int(leaders[group], 16)).bit_count() <= 6
        drawn.setdefault(group, set()).add(in_holdout(group, settings))
    assert all(len(sides) == 1 for sides in drawn.values())


def test_a_group_keeps_its_members_when_its_first_image_is_purged(sqlite_database: Database, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(scene(0)))
    (tmp_path / "b.jpg").write_bytes(encoded(scene(0), "JPEG"))
    campaign = new_campaign(sqlite_database)
    ingest(sqlite_database, campaign, str(tmp_path))
    with sqlite_database.connect() as conn:
        first, second = image_hashes(conn, campaign.id)
        scope = purge.find_scope(conn, campaign.id, "1")
    assert first[2] == second[2] == first[0]
    purge.purge(sqlite_database, scope, str(tmp_path / "storage"), purged_by="me")
    (tmp_path / "c.bmp").write_bytes(encoded(scene(0), "BMP"))
    report = ingest(sqlite_database, campaign, str(tmp_path))
    assert (report.purged, report.registered) == (1, 1)
    with sqlite_database.connect() as conn:
        assert [group for _, _, group in image_hashes(conn, campaign.id)] == [first[0]] * 2
    assert [image.number for image in catalogue(sqlite_database, campaign)] == [2, 3]


def test_the_file_of_a_purged_image_is_read_once_more_and_not_named(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(scene(0)))
    (tmp_path / "b.png").write_bytes(encoded(scene(1)))
    campaign = new_campaign(sqlite_database)
    ingest(sqlite_database, campaign, str(tmp_path))
    with sqlite_database.connect() as conn:
        scope = purge.find_scope(conn, campaign.id, "1")
    purge.purge(sqlite_database, scope, str(tmp_path / "storage"), purged_by="me")
    reads: list[str] = []

    def read(fs: Any, name: str) -> bytes:
        reads.append(Path(name).name)
        return read_bytes(fs, name)

    monkeypatch.setattr(scan, "read_bytes", read)
    for expected in (["a.png"], []):
        reads.clear()
        report = ingest(sqlite_database, campaign, str(tmp_path))
        assert (report.purged, report.unchanged, report.registered, report.gone) == (1, 1, 0, 0)
        assert reads == expected
    with sqlite_database.connect() as conn:
        assert conn.execute(select(Source.uri).where(Source.image_id.is_(None))).scalars().all() == [""]
    os.utime(path, ns=(1, 1))
    assert ingest(sqlite_database, campaign, str(tmp_path)).purged == 1 and reads == ["a.png"]
    path.rename(tmp_path / "c.png")
    assert ingest(sqlite_database, campaign, str(tmp_path)).gone == 0
    report = ingest(sqlite_database, campaign, str(tmp_path), readmit=True)
    assert (report.purged, report.registered) == (0, 1)
    assert [image.file_name for image in catalogue(sqlite_database, campaign)] == ["b.png", "c.png"]


def test_stopped_and_run_again_is_as_run_once(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "images", range(30))
    whole, parts = new_campaign(sqlite_database), new_campaign(sqlite_database)
    ingest(sqlite_database, whole, str(tmp_path / "images"))
    monkeypatch.setattr(scan, "BATCH_ROWS", 4)
    asked: list[int] = []

    def stop_after(calls: int) -> Callable[[], bool]:
        asked.clear()
        return lambda: len(asked) >= calls or asked.append(1) is not None

    first = ingest(sqlite_database, parts, str(tmp_path / "images"), should_stop=stop_after(10))
    assert first.stopped and 0 < first.registered < 30
    second = ingest(sqlite_database, parts, str(tmp_path / "images"))
    assert not second.stopped and second.registered + first.registered == 30
    facts = [
        [(i.number, i.file_name, i.sha256, i.holdout) for i in catalogue(sqlite_database, campaign)]
        for campaign in (whole, parts)
    ]
    assert facts[0] == facts[1]


def test_a_source_that_vanishes_keeps_what_was_registered(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "images"
    write_scenes(source, range(40))
    campaign = new_campaign(sqlite_database)
    monkeypatch.setattr(scan, "BATCH_ROWS", 2)

    def remove_source(facts: dict[str, int]) -> None:
        if facts["done"] >= 4 and source.exists():
            source.rename(tmp_path / "away")

    with pytest.raises(BadInputError, match="disappeared"):
        ingest(sqlite_database, campaign, str(source), progress=remove_source)
    kept = len(catalogue(sqlite_database, campaign))
    assert kept >= 4
    (tmp_path / "away").rename(source)
    report = ingest(sqlite_database, campaign, str(source))
    assert (report.registered, report.unchanged) == (40 - kept, kept)


def test_a_file_that_vanishes_costs_only_itself(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, range(4))
    campaign = new_campaign(sqlite_database)
    listing = scan.list_files(str(tmp_path))
    (tmp_path / "scene-002.png").unlink()
    monkeypatch.setattr(scan, "list_files", lambda url, roots=None: listing)
    report = ingest(sqlite_database, campaign, str(tmp_path))
    assert (report.registered, report.vanished) == (3, 1)
    assert quarantined(sqlite_database, campaign) == {}


def test_near_duplicates_are_held_out_together(sqlite_database: Database, tmp_path: Path) -> None:
    for seed in range(12):
        (tmp_path / f"{seed:02d}-a.png").write_bytes(encoded(scene(seed)))
        (tmp_path / f"{seed:02d}-b.jpg").write_bytes(encoded(scene(seed), "JPEG", quality=70))
    campaign = new_campaign(sqlite_database, holdout_fraction=0.5)
    for pattern in ("*-a.png", "*-b.jpg"):  # two passes: the second finds the leaders in the catalogue
        ingest(sqlite_database, campaign, f"{tmp_path}/{pattern}")
    drawn: dict[str, set[bool]] = {}
    for image in catalogue(sqlite_database, campaign):
        drawn.setdefault(image.file_name[:2], set()).add(image.holdout)
    assert all(len(values) == 1 for values in drawn.values())
    assert len({next(iter(values)) for values in drawn.values()}) == 2


def test_a_pixel_bomb_is_quarantined_by_its_header(sqlite_database: Database, tmp_path: Path) -> None:
    (tmp_path / "big.png").write_bytes(encoded(scene(0, 200, 200)))
    campaign = new_campaign(sqlite_database)
    assert counts(ingest(sqlite_database, campaign, str(tmp_path), max_pixels=10_000)) == (0, 0, 1, 0)
    assert "200x200" in quarantined(sqlite_database, campaign)["big.png"]


def test_an_unreachable_storage_is_said_and_loses_nothing(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, range(6))
    campaign = new_campaign(sqlite_database)
    read = scan.read_bytes

    def failing(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
        if path.endswith("scene-004.png"):
            raise OSError("connection reset")
        return read(fs, path)

    monkeypatch.setattr(scan, "read_bytes", failing)
    with pytest.raises(BusyError, match="run it again"):
        ingest(sqlite_database, campaign, str(tmp_path))
    assert len(catalogue(sqlite_database, campaign)) == 4


@pytest.mark.s3
def test_a_bucket_is_registered_in_place(sqlite_database: Database, s3_bucket: str, tmp_path: Path) -> None:
    write_scenes(tmp_path, range(5))
    fs = fsspec.filesystem("s3")
    for path in tmp_path.glob("scene-*"):
        fs.put_file(str(path), f"{s3_bucket}/data/{path.name}")
    campaign = new_campaign(sqlite_database)
    report = ingest(sqlite_database, campaign, f"{s3_bucket}/data")
    assert counts(report) == (5, 0, 0, 0)
    assert catalogue(sqlite_database, campaign)[0].uri == f"{s3_bucket}/data/scene-000.png"
    assert counts(ingest(sqlite_database, campaign, f"{s3_bucket}/data")) == (0, 0, 0, 5)


def test_a_campaigns_window_stands_with_its_images(database: Database, tmp_path: Path) -> None:
    campaign = new_campaign(database, window=(100.0, 4000.0))
    write_scenes(tmp_path / "images", range(1))
    (tmp_path / "images" / "grey.png").write_bytes(encoded(scene(2)[:, :, 0].astype(np.uint16) << 4))
    ingest(database, campaign, str(tmp_path / "images"))
    assert [image.ref.window for image in catalogue(database, campaign)] == [(100.0, 4000.0)] * 2
    grey = catalogue(database, campaign)[0].ref
    assert np.array_equal(read_image(grey), decode_image(Path(grey.uri).read_bytes(), window=(100.0, 4000.0))[0])


def test_files_that_are_gone_are_told_and_their_images_stay(database: Database, tmp_path: Path) -> None:
    campaign, folder = new_campaign(database), tmp_path / "images"
    write_scenes(folder / "a", range(4))
    write_scenes(folder / "b", range(100, 102))
    ingest(database, campaign, str(folder))
    removed = sorted((folder / "a").iterdir())[2]
    removed.unlink()
    for source, gone in ((folder, 1), (folder / "a", 1), (folder / "b", 0), (folder / "a" / "*.png", 1)):
        report = ingest(database, campaign, str(source))
        assert (report.gone, report.gone_files) == (gone, [str(removed)] * gone), source
        assert report.registered == 0
    assert len(catalogue(database, campaign)) == 6


def kept(database: Database, campaign: CampaignRecord) -> list[tuple[int, str, str, bool]]:
    """What stays of an image wherever its file goes; each can be read there."""
    found = catalogue(database, campaign)
    for image in found:
        assert hashlib.sha256(read_image_bytes(image.ref)).hexdigest() == image.sha256
    return [(image.number, image.id, image.sha256, image.holdout) for image in found]


def test_a_source_that_was_moved_is_read_where_it_is(database: Database, tmp_path: Path) -> None:
    campaign, old, new = new_campaign(database), tmp_path / "old", tmp_path / "new"
    write_scenes(old, range(4))
    ingest(database, campaign, str(old))
    before = kept(database, campaign)
    old.rename(new)
    report = ingest(database, campaign, str(new))
    assert (counts(report), report.moved, report.gone) == ((0, 4, 0, 0), 4, 0)
    assert kept(database, campaign) == before
    assert [Path(image.uri) for image in catalogue(database, campaign)] == sorted(new.iterdir())
    with database.connect() as conn:
        assert campaign_status(conn, campaign.id).duplicates == 0
    again = ingest(database, campaign, str(new))
    assert (counts(again), again.moved, again.gone) == ((0, 0, 0, 4), 0, 0)


def test_files_may_be_renamed_and_change_places(sqlite_database: Database, tmp_path: Path) -> None:
    campaign, folder = new_campaign(sqlite_database), tmp_path / "images"
    for seed in range(5):
        folder.mkdir(exist_ok=True)
        (folder / f"{seed}.png").write_bytes(encoded(scene(seed)))
    ingest(sqlite_database, campaign, str(folder))
    before = kept(sqlite_database, campaign)
    for old, new in (("4", "6"), ("3", "4"), ("2", "3"), ("0", "x"), ("1", "0"), ("x", "1")):
        (folder / f"{old}.png").rename(folder / f"{new}.png")
    report = ingest(sqlite_database, campaign, str(folder))
    assert (report.registered, report.moved, report.gone) == (0, 5, 0)
    assert kept(sqlite_database, campaign) == before
    names = ["1.png", "0.png", "3.png", "4.png", "6.png"]
    assert [image.file_name for image in catalogue(sqlite_database, campaign)] == names
    again = ingest(sqlite_database, campaign, str(folder))
    assert (again.unchanged, again.moved, again.gone) == (5, 0, 0)


@pytest.mark.parametrize("copies", ["images", "copies"], ids=["in the source", "elsewhere"])
@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_a_copy_takes_over(sqlite_database: Database, tmp_path: Path, copies: str, is_replaced: bool) -> None:
    campaign, first = new_campaign(sqlite_database), tmp_path / "images" / "1.png"
    write_scenes(tmp_path / "images", range(2))
    first.write_bytes(encoded(scene(5)))
    copy = tmp_path / copies / "2.png"
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(first.read_bytes())
    for folder in dict.fromkeys((first.parent, copy.parent)):
        ingest(sqlite_database, campaign, str(folder))
    before = kept(sqlite_database, campaign)
    if is_replaced:
        first.write_bytes(encoded(scene(6)))
    else:
        first.unlink()
    report = ingest(sqlite_database, campaign, str(first.parent))
    assert (report.registered, report.moved, report.gone) == (int(is_replaced), 1, 0)
    assert kept(sqlite_database, campaign)[:3] == before
    assert catalogue(sqlite_database, campaign)[0].uri == str(copy)


def test_a_source_that_was_copied_first_and_removed_later(sqlite_database: Database, tmp_path: Path) -> None:
    campaign, old, new = new_campaign(sqlite_database), tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        write_scenes(folder, range(3))
        assert ingest(sqlite_database, campaign, str(folder)).moved == 0
    before = kept(sqlite_database, campaign)
    assert all(image.uri.startswith(str(old)) for image in catalogue(sqlite_database, campaign))
    shutil.rmtree(old)
    report = ingest(sqlite_database, campaign, str(new))
    assert (counts(report), report.moved) == ((0, 0, 0, 3), 3)
    assert kept(sqlite_database, campaign) == before


def test_one_file_of_another_source_was_moved_here(sqlite_database: Database, tmp_path: Path) -> None:
    campaign, old, new = new_campaign(sqlite_database), tmp_path / "old", tmp_path / "new"
    write_scenes(old, range(3))
    ingest(sqlite_database, campaign, str(old))
    before = kept(sqlite_database, campaign)
    new.mkdir()
    (old / "scene-001.jpg").rename(new / "here.jpg")
    assert ingest(sqlite_database, campaign, str(new)).moved == 1
    assert kept(sqlite_database, campaign) == before


def test_a_moved_image_that_could_not_be_encoded_gets_another_chance(sqlite_database: Database, tmp_path: Path) -> None:
    campaign, folder = new_campaign(sqlite_database), tmp_path / "images"
    write_scenes(folder, range(1))
    ingest(sqlite_database, campaign, str(folder))
    (folder / "scene-000.png").rename(folder / "new.png")
    with sqlite_database.begin() as conn:
        quarantine_image(conn, catalogue(sqlite_database, campaign)[0].id, "gone when it was to be encoded")
    assert ingest(sqlite_database, campaign, str(folder)).moved == 1
    assert quarantined(sqlite_database, campaign) == {}
    assert ingest(sqlite_database, campaign, str(folder)).unchanged == 1


def test_a_pass_that_changes_nothing_looks_at_no_file(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = new_campaign(sqlite_database)
    for folder in ("a", "b"):
        write_scenes(tmp_path / folder, range(6))
        ingest(sqlite_database, campaign, str(tmp_path / folder))
    asked: list[str] = []

    def exists(fs: Any, path: str) -> bool:
        asked.append(path)
        return files.exists(fs, path)

    monkeypatch.setattr(moved, "exists", exists)
    for folder, expected in (("a", []), ("b", [str(tmp_path / "a")]), ("", [])):
        report = ingest(sqlite_database, campaign, str(tmp_path / folder))
        assert (report.unchanged, report.moved) == (12 if folder == "" else 6, 0)
        assert asked == expected
        asked.clear()


@pytest.mark.s3
def test_objects_that_were_moved_are_read_where_they_are(
    sqlite_database: Database, s3_bucket: str, tmp_path: Path
) -> None:
    write_scenes(tmp_path, range(3))
    fs = fsspec.filesystem("s3")
    for path in tmp_path.glob("scene-*"):
        fs.put_file(str(path), f"{s3_bucket}/old/{path.name}")
    campaign = new_campaign(sqlite_database)
    ingest(sqlite_database, campaign, f"{s3_bucket}/old")
    before = kept(sqlite_database, campaign)
    for path in tmp_path.glob("scene-*"):
        fs.mv(f"{s3_bucket}/old/{path.name}", f"{s3_bucket}/new/{path.name}")
    assert ingest(sqlite_database, campaign, f"{s3_bucket}/new").moved == 3
    assert kept(sqlite_database, campaign) == before
