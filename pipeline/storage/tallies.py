"""Reading the counts that the database keeps (see `schemas.tallies`), and keeping those that no trigger can."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, Connection, TextClause, bindparam, delete, func, select, text

from pipeline.storage.numbers import lock_campaign
from pipeline.storage.sql import insert_into
from schemas.tables import LatencyTally, Tally, WorkTally
from schemas.tallies import CLEAR, count_all, count_masks


def tallies(conn: Connection, campaign_id: str, kind: str) -> dict[str, int]:
    """What a campaign has of a kind, by key; keys of which there is none are left out."""
    mine = select(Tally.key, func.sum(Tally.amount)).where(Tally.campaign_id == campaign_id, Tally.kind == kind)
    rows = conn.execute(mine.group_by(Tally.key).order_by(Tally.key))
    return {key: int(amount) for key, amount in rows if amount}


@contextmanager
def counted(conn: Connection, campaign_id: str, image_ids: Sequence[str]) -> Iterator[None]:
    """Keep count of the current masks and proposals of images while the block changes which those are.

    Not to be nested. Locks the campaign, as whoever else changes them does: between the two counts nobody's change gets
    in.
    """
    lock_campaign(conn, campaign_id)
    for statement in _masks_of_images(conn.dialect.name, -1):
        conn.execute(statement, {"images": image_ids})
    yield
    for statement in _masks_of_images(conn.dialect.name, 1):
        conn.execute(statement, {"images": image_ids})


def add_imported(conn: Connection, campaign_id: str, amount: int, *, is_trusted: bool) -> None:
    """Count imported masks (proposals, if not trusted) that were just stored, by whom the campaign is locked."""
    kind = "imported" if is_trusted else "proposal"
    shard = 0 if conn.dialect.name == "sqlite" else func.pg_backend_pid()
    more = insert_into(conn, Tally).values(campaign_id=campaign_id, kind=kind, key="", shard=shard, amount=amount)
    keys = ["campaign_id", "kind", "key", "shard"]
    conn.execute(more.on_conflict_do_update(index_elements=keys, set_={"amount": Tally.amount + amount}))


def forget_tallies(conn: Connection, campaign_id: str) -> None:
    """Drop a campaign's counts, all zero by now."""
    for table in (Tally, WorkTally, LatencyTally):
        conn.execute(delete(table).where(table.campaign_id == campaign_id))


def recount(conn: Connection) -> None:
    """Count everything anew."""
    for statement in (*CLEAR, *count_all(conn.dialect.name)):
        conn.exec_driver_sql(statement)


@cache
def _masks_of_images(dialect: str, sign: int) -> list[TextClause]:
    images: BindParameter[Any] = bindparam("images", expanding=True)
    return [text(statement).bindparams(images) for statement in count_masks(dialect, sign, ":images")]
