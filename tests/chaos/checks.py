"""What must hold after everything: of the log, the leases, the masks, and what lies in the storage."""

import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Connection, select

from pipeline.embeddings.codec import check_bytes, embedding_digest
from pipeline.export.verify import verify_snapshot
from pipeline.storage import campaigns, images, masks
from pipeline.storage.database import Database, open_database
from pipeline.storage.files import join, open_storage, read_bytes
from schemas.errors import ClickloopError, CorruptDataError
from schemas.settings import Settings
from schemas.tables import Adapter, Embedding, EventRow, Image, Lease, Session
from tests.chaos.annotators import Ledger


@contextmanager
def open_run() -> Iterator[Database]:
    """The database that the environment names."""
    database = open_database(Settings().resolved_database_url, embedded=False)
    try:
        yield database
    finally:
        database.close()


def check(campaign: str, ledger: Ledger, exports: Sequence[str]) -> list[str]:
    """What is wrong with what is stored.

    Args:
        campaign: Its name.
        ledger: What the annotators know.
        exports: URLs of exports; the last one was made when nobody labelled any more.
    """
    with open_run() as database, database.connect() as conn:
        wrong = ledger.wrong + _of_log(conn, ledger) + _of_leases(conn)
        wrong += _of_images(conn, campaign) + _of_storage(conn) + _of_last_export(conn, campaign, exports[-1])
    for url in exports:
        try:
            wrong += [f"export {url}: {problem}" for problem in verify_snapshot(url).problems]
        except ClickloopError as error:
            wrong.append(f"export {url}: {error}")
    return wrong + _of_replay(campaign)


def _of_log(conn: Connection, ledger: Ledger) -> list[str]:
    """Every acknowledged event once and in order, and nothing that was refused or never made."""
    events = conn.execute(select(EventRow.event_id, EventRow.session_id, EventRow.seq)).all()
    logged = {row.event_id: (row.session_id, row.seq) for row in events}
    wrong = [
        f"acknowledged, not in the log: {name} {place}"
        for name, place in ledger.acked.items()
        if logged.get(name) != place
    ]
    wrong += [f"in the log, never made: {name}" for name in logged.keys() - ledger.made]
    wrong += [f"in the log, but refused: {name}" for name in logged.keys() & ledger.refused]
    by_session: dict[str, list[int]] = defaultdict(list)
    for row in events:
        by_session[row.session_id].append(row.seq)
    for session, seqs in by_session.items():
        if sorted(seqs) != list(range(1, len(seqs) + 1)):
            wrong.append(f"session {session} has gaps: {sorted(seqs)}")
    return wrong


def _of_leases(conn: Connection) -> list[str]:
    """Nobody wrote under a lease after the task was another's, and no lease is left, however its holder ended."""
    wrong: list[str] = []
    sessions = {row.id: row for row in conn.execute(select(Session.id, Session.task_id, Session.lease_no))}
    columns = (EventRow.event_id, EventRow.session_id, EventRow.lease_no, EventRow.server_time)
    last: dict[tuple[str, int], Any] = {}
    for event in conn.execute(select(*columns)):
        session = sessions[event.session_id]
        if event.lease_no != session.lease_no:
            wrong.append(f"event {event.event_id} was written under lease {event.lease_no}, not its session's")
        key = (session.task_id, event.lease_no)
        last[key] = max(last.get(key, event.server_time), event.server_time)
    for lease in conn.execute(select(Lease.task_id, Lease.lease_no, Lease.acquired_at, Lease.ended_at)):
        before = last.get((lease.task_id, lease.lease_no - 1))
        if before is not None and before > lease.acquired_at:
            wrong.append(
                f"task {lease.task_id}: lease {lease.lease_no - 1} wrote at {before}, after {lease.acquired_at}"
            )
        if lease.ended_at is None:
            wrong.append(f"task {lease.task_id}: lease {lease.lease_no} never ended")
    return wrong


def _of_images(conn: Connection, campaign: str) -> list[str]:
    """All of them are encoded in the end, and none is taken for a bad one."""
    record = campaigns.get_campaign(conn, campaign)
    query = select(Image.file_name, Image.quarantine_reason).where(Image.quarantine_reason.is_not(None))
    wrong = [f"{name} is quarantined: {reason}" for name, reason in conn.execute(query)]
    if missing := images.count_missing_embeddings(conn, record.id, record.model_key):
        wrong.append(f"{missing} images have no embedding")
    return wrong


def _of_storage(conn: Connection) -> list[str]:
    """Whatever is there under its name is whole, and what the catalogue knows is there."""
    fs, root = open_storage(Settings().resolved_storage_url)
    fs.invalidate_cache()
    found = {str(PurePosixPath(path).relative_to(root)): path for path in fs.find(root)}
    digests: dict[tuple[str, str], str] = {}
    wrong = []
    for name, path in found.items():
        parts = PurePosixPath(name).parts
        if parts[0] not in ("embeddings", "adapters", "models") or parts[-1].startswith("."):
            continue  # a hidden one is what a killed writer left: nobody reads it, and `gc` removes it
        data = read_bytes(fs, path)
        if parts[-1].endswith(".json"):
            json.loads(data)
        elif parts[0] == "embeddings":
            digests[parts[1], PurePosixPath(name).stem] = embedding_digest(data)
            try:
                check_bytes(data)
            except CorruptDataError as error:
                wrong.append(f"{name}: {error}")
        elif hashlib.sha256(data).hexdigest() not in name:
            wrong.append(f"{name} has other bytes than its name says")
    for row in conn.execute(select(Embedding.model_key, Embedding.image_sha256, Embedding.digest)):
        if digests.get((row.model_key, row.image_sha256)) != row.digest:
            wrong.append(f"the embedding of {row.image_sha256} is not the one that the catalogue knows")
    for digest in conn.execute(select(Adapter.digest)).scalars():
        if f"adapters/{digest}/weights.safetensors" not in found:
            wrong.append(f"adapter {digest} is not there")
    return wrong


def _of_last_export(conn: Connection, campaign: str, url: str) -> list[str]:
    """Every accepted mask is in it."""
    fs, root = open_storage(url)
    exported = {
        one["id"]: one["segmentation"]["counts"]
        for one in json.loads(read_bytes(fs, join(root, "coco", "instances.json")))["annotations"]
    }
    current = masks.current_masks(conn, campaigns.get_campaign(conn, campaign).id)
    stored = {mask.number: mask.rle_counts for mask in current}
    if exported == stored:
        return []
    return [f"the export has {len(exported)} masks, the catalogue {len(stored)}, or others"]


def _of_replay(campaign: str) -> list[str]:
    command = [sys.executable, "-m", "flows.cli", "replay", campaign, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        return [f"replay: {done.stderr[-500:]}"]
    same = report["masks"] == report["identical"] and report["events"] == report["events_identical"]
    return [] if same and done.returncode == 0 else [f"replay: {report['mismatches'][:3]}"]
