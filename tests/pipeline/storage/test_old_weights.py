"""Weights that go, and those that must not: random histories of campaigns against a plain reading of what is needed."""

import os
import random
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from pipeline.storage import adapters, old_weights, purge, requests, snapshots
from pipeline.storage.click_log import Effects, InstanceChange
from pipeline.storage.database import Database, open_database
from pipeline.storage.files import exists, join, open_storage, write_atomic
from pipeline.storage.sql import database_now
from schemas.columns import db_now
from schemas.errors import StateError
from schemas.tables import Adapter, Campaign, EventRow, MaskRow, Model, Promotion
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_mask, new_uuid, sha

MODELS = [SHA, "cd" * 32, "ef" * 32]
OLD = timedelta(days=100)


class World:
    """Campaigns with histories of adapters, and the files of all."""

    def __init__(self, database: Database, storage_url: str, draw: random.Random, steps: int = 0) -> None:
        self.database, self.storage_url, self.draw = database, storage_url, draw
        self.fs, self.root = open_storage(storage_url)
        self.campaigns = [Catalogue(database, images=6) for _ in range(2)]
        self.digests: list[str] = []
        with database.begin() as conn:
            for model in MODELS:
                adapters.register_model(conn, model, "toy-color", "", 4)
                for ending in ("safetensors", "json"):
                    write_atomic(self.fs, self.model(model, ending), b"1234")
            conn.execute(update(Model).values(created_at=database_now(conn) - OLD))
        for _ in range(steps):
            self.step(draw.choice(self.campaigns))

    def model(self, digest: str, ending: str = "safetensors") -> str:
        """Where a model's file is."""
        return join(self.root, "models", f"{digest}.{ending}")

    def has(self, digest: str) -> bool:
        """Whether an adapter's file is there."""
        return exists(self.fs, join(self.root, "adapters", digest, "weights.safetensors"))

    def step(self, campaign: Catalogue) -> None:
        """Something happens to a campaign."""
        done: Any = self.draw.choice([self.train, self.train, self.promote, self.promote, self.roll_back, self.work])
        done(campaign)

    def train(self, campaign: Catalogue, gate: bool | None = None, days: float | None = None) -> str:
        """A new adapter; the gate says so, or nothing yet."""
        digest = sha(f"adapter {len(self.digests)}")
        self.digests.append(digest)
        verdict = self.draw.choice([True, True, False, None]) if gate is None else gate
        age = timedelta(days=self.draw.choice([1, 100]) if days is None else days)
        model = self.draw.choice([SHA, SHA, MODELS[1]]) if gate is None else SHA
        with self.database.begin() as conn:
            adapters.register_adapter(
                conn, digest=digest, campaign_id=campaign.campaign_id, kind="head", uri="", model_digest=model,
                model_key="key", parent_digest=None, snapshot_id=None, seed=0,
            )  # fmt: skip
            if verdict is not None:
                adapters.set_gate(conn, digest, "candidate" if verdict else "rejected", {"promote": verdict})
            created = database_now(conn) - age
            conn.execute(update(Adapter).where(Adapter.digest == digest).values(created_at=created))
        for name in ("weights.safetensors", "card.json"):
            write_atomic(self.fs, join(self.root, "adapters", digest, name), b"12")
        return digest

    def live_version(self, conn: Any, campaign: Catalogue) -> int:
        """As the compare-and-set wants it."""
        query = select(Campaign.live_version).where(Campaign.id == campaign.campaign_id)
        return int(conn.execute(query).scalar_one())

    def promote(self, campaign: Catalogue, digest: str | None = None, days: float | None = None) -> None:
        """Make an adapter live, if it may."""
        with self.database.begin() as conn:
            mine = [record.digest for record in adapters.list_adapters(conn, campaign.campaign_id)]
            digest = digest or (self.draw.choice(mine) if mine else None)
            if digest is None:
                return
            try:
                adapters.promote(conn, campaign.campaign_id, digest, self.live_version(conn, campaign))
            except StateError:
                return
            self._age_promotion(conn, campaign, days)

    def roll_back(self, campaign: Catalogue) -> None:
        """One back, if there is one."""
        with self.database.begin() as conn:
            try:
                adapters.rollback(conn, campaign.campaign_id)
            except StateError:
                return
            self._age_promotion(conn, campaign, None)

    def _age_promotion(self, conn: Any, campaign: Catalogue, days: float | None) -> None:
        age = timedelta(days=self.draw.choice([1, 100, 100]) if days is None else days)
        row = (
            Promotion.campaign_id == campaign.campaign_id,
            Promotion.version == self.live_version(conn, campaign),
        )
        conn.execute(update(Promotion).where(*row).values(created_at=database_now(conn) - age))

    def work(self, campaign: Catalogue, accept: bool | None = None) -> None:
        """Somebody opens an instance with what is live, and perhaps accepts it."""
        accepts = self.draw.random() < 0.5 if accept is None else accept
        try:
            claim = campaign.claim()
        except AssertionError:
            return  # nothing is left
        with self.database.connect() as conn:
            live = conn.execute(select(Campaign.live_adapter).where(Campaign.id == campaign.campaign_id)).scalar_one()
        instance, pins = new_uuid(), {"model_digest": SHA, "adapter_digest": live}
        opened = event(claim, 1, "open", instance_id=instance)
        campaign.append(claim, opened, pins=pins, effects=Effects([InstanceChange(instance)]))
        if accepts:
            mask = new_mask(instance, 2, adapter_digest=live)
            campaign.append(claim, event(claim, 2, instance_id=instance))
            accepted = event(claim, 3, "accept", instance_id=instance, payload={"seq": 2, "mask_sha256": SHA})
            changes = [InstanceChange(instance, "accepted", 1, mask_id=mask.mask_id)]
            campaign.append(claim, accepted, effects=Effects(changes, mask))
            campaign.append(claim, event(claim, 4, "submit"))

    def collect(self, **options: Any) -> list[old_weights.Removed]:
        """Garbage, weights only."""
        return old_weights.collect_weights(self.database, self.storage_url, **options)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    """Without a history."""
    return World(database, str(tmp_path / "storage"), random.Random(0))


def logged(database: Database) -> set[str]:
    """Adapters that replay needs, read row by row."""
    with database.connect() as conn:
        pins = [row for row in conn.execute(select(EventRow.pins)).scalars() if row]
        masks = list(conn.execute(select(MaskRow.adapter_digest)).scalars())
    return {digest for digest in [*(pin["adapter_digest"] for pin in pins), *masks] if digest}


def _check_history(world: World, keep: int) -> int:
    """Collect, then use everything that must be usable; how many went."""
    needed = logged(world.database)
    told = world.collect(keep_promoted=keep, dry_run=True)
    assert all(world.has(digest) for digest in world.digests)
    removed = world.collect(keep_promoted=keep)
    assert removed == told
    assert world.collect(keep_promoted=keep) == []
    gone = {one.name for one in removed if one.kind == "adapters"}
    assert {digest for digest in world.digests if not world.has(digest)} == gone
    assert not gone & needed
    with world.database.connect() as conn:
        rows = {row.digest: row for row in conn.execute(select(Adapter.__table__))}
        young = database_now(conn) - timedelta(days=30)
    for digest, row in rows.items():
        assert (row.removed_at is not None) is (digest in gone)
        if digest in gone:
            assert row.state in ("rejected", "retired") and row.created_at < young
        elif row.state == "rejected":  # never live, never worked with: age alone keeps it
            assert row.created_at >= young
    for campaign in world.campaigns:
        for back in range(keep + 1):
            with world.database.begin() as conn:
                live = conn.execute(
                    select(Campaign.live_adapter).where(Campaign.id == campaign.campaign_id)
                ).scalar_one()
                assert live is None or world.has(live), back
                if len(adapters.standing_promotions(conn, campaign.campaign_id)) == 1 or back == keep:
                    break
                adapters.rollback(conn, campaign.campaign_id)
    models = {one.name for one in removed if one.kind == "models"}
    named = {row.model_digest for row in rows.values() if row.digest not in gone} | {SHA}
    assert models == set(MODELS) - named
    for model in MODELS:
        for ending in ("safetensors", "json"):
            assert exists(world.fs, world.model(model, ending)) is (model not in models)
    return len(gone)


def test_whatever_happened_what_is_needed_stays(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path
) -> None:
    gone = 0
    for seed in range(8):
        folder = tmp_path_factory.mktemp("world")
        shutil.copyfile(migrated_sqlite, folder / "clickloop.db")
        database = open_database(f"sqlite:///{folder / 'clickloop.db'}")
        draw = random.Random(seed)
        gone += _check_history(World(database, str(folder / "storage"), draw, steps=40), draw.choice([1, 3]))
        database.close()
    assert gone > 5


@pytest.mark.postgres
def test_whatever_happened_on_postgresql(postgres_database: Database, tmp_path: Path) -> None:
    assert _check_history(World(postgres_database, str(tmp_path), random.Random(1), steps=60), 1) > 0


def test_on_an_object_store(sqlite_database: Database, s3_bucket: str) -> None:
    assert _check_history(World(sqlite_database, f"{s3_bucket}/prefix", random.Random(1), steps=40), 1) > 0


def test_old_promotions_beyond_those_kept_go_and_cannot_come_back(world: World) -> None:
    campaign = world.campaigns[0]
    made = [world.train(campaign, True, 100) for _ in range(6)]
    for digest in made:
        world.promote(campaign, digest, 60)
    assert [one.name for one in world.collect(keep_promoted=3) if one.kind == "adapters"] == made[:2]
    with world.database.begin() as conn:
        for expected in (made[4], made[3], made[2]):
            assert adapters.rollback(conn, campaign.campaign_id)[1] == expected
    with world.database.begin() as conn, pytest.raises(StateError, match=r"adapter 2 were removed by `clickloop gc`"):
        adapters.rollback(conn, campaign.campaign_id)
    with world.database.begin() as conn, pytest.raises(StateError, match="Retrain, or promote another"):
        adapters.promote(conn, campaign.campaign_id, made[0], world.live_version(conn, campaign))


def test_what_was_live_lately_or_whose_campaign_is_busy_stays(world: World) -> None:
    first, second = (world.train(world.campaigns[0], True, 100) for _ in range(2))
    world.promote(world.campaigns[0], first, 60)
    world.promote(world.campaigns[0], second, 1)  # the first was live until yesterday
    rejected = world.train(world.campaigns[1], False, 100)
    with world.database.begin() as conn:
        request = requests.insert_request(conn, new_uuid(), "retrain", world.campaigns[1].campaign_id, {})
    assert [one for one in world.collect(keep_promoted=1) if one.kind == "adapters"] == []
    with world.database.begin() as conn:
        requests.cancel_request(conn, request.id)
    assert [one.name for one in world.collect(keep_promoted=1) if one.kind == "adapters"] == [rejected]


def test_the_same_adapter_trained_again_is_there_again(world: World) -> None:
    campaign = world.campaigns[0]
    digest = world.train(campaign, False, 100)
    assert len([one for one in world.collect() if one.kind == "adapters"]) == 1
    world.digests.remove(digest)
    assert world.train(campaign, True, 0) == digest
    world.promote(campaign, digest, 0)
    with world.database.connect() as conn:
        found = adapters.get_adapter(conn, digest)
    assert (found.state, found.removed_at, found.live) == ("promoted", None, True)


def test_an_export_of_purged_data_keeps_the_adapter_that_its_manifest_names(world: World) -> None:
    campaign = world.campaigns[0]
    digests = [world.train(campaign, True, 100) for _ in range(3)]
    world.promote(campaign, digests[0], 90)
    world.work(campaign, accept=True)
    with world.database.begin() as conn:
        snapshots.create_snapshot(conn, campaign.campaign_id, "export")
    for digest in digests[1:]:
        world.promote(campaign, digest, 60)
    with world.database.connect() as conn:
        image = conn.execute(select(MaskRow.image_id)).scalar_one()
        scope = purge.find_scope(conn, campaign.campaign_id, image)
    purge.purge(world.database, scope, world.storage_url, purged_by="me")
    assert logged(world.database) == set()
    assert [one for one in world.collect(keep_promoted=1) if one.kind == "adapters"] == []


def test_a_model_that_a_campaign_is_being_made_with_stays(world: World) -> None:
    with world.database.begin() as conn:
        request = requests.insert_request(conn, new_uuid(), "campaign", None, {"create": {}})
    assert [one for one in world.collect() if one.kind == "models"] == []
    with world.database.begin() as conn:
        requests.cancel_request(conn, request.id)
        conn.execute(insert(Model).values(digest="0" * 64, model_id="x", uri="", size_bytes=1, created_at=db_now()))
    assert {one.name for one in world.collect() if one.kind == "models"} == set(MODELS[1:])


def test_only_checkpoints_of_trainings_that_are_over_go(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "training"
    folder.mkdir()
    with world.database.begin() as conn:
        ids = [
            requests.insert_request(conn, new_uuid(), "retrain", campaign.campaign_id, {}).id
            for campaign in world.campaigns
        ]
        requests.cancel_request(conn, ids[0])
    for name, days in ((ids[0], 2), (ids[1], 2), ("unknown", 2), ("young", 0.5)):
        path = folder / f"{name}.checkpoint"
        path.write_bytes(b"123")
        os.utime(path, (time.time() - days * 86400,) * 2)
    told = old_weights.collect_checkpoints(world.database, folder, dry_run=True)
    assert len(list(folder.iterdir())) == 4
    assert old_weights.collect_checkpoints(world.database, folder) == told
    assert {one.name: one.reason for one in told} == {
        ids[0]: "its retrain is cancelled",
        "unknown": "its retrain is not known any more",
    }
    assert {path.stem for path in folder.iterdir()} == {ids[1], "young"}
    assert old_weights.collect_checkpoints(world.database, tmp_path / "none") == []
