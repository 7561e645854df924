"""Counts that the database keeps beside what it counts, in the same transaction: reading them takes no pass over rows.

What a row counts for depends on it and on rows that do not change while it is there, so triggers add it when it comes,
subtract it when it goes and do both when it changes. Only which masks are current depends on other instances:
`count_masks` counts those of some images, before a change and after it (`pipeline.storage.tallies`).

A count is the sum over its shards: PostgreSQL has one for each connection, so that nobody waits for another's; SQLite,
which has one writer, has one.
"""

from dataclasses import dataclass

SLOT_S = 300
"""Work and clicks are counted by slots of so many seconds."""
AWAY_S = 900
"""A mask that took longer says when somebody went to lunch, not how long a mask takes."""
STAGES = ("fetch", "model", "post", "encode")
"""Of `event_results.latency_ms`."""
EDGES_MS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 1000, 2000, 5000)
"""Of the latency histogram; its last bin is open."""
NO_CATEGORY = -1
TABLES = frozenset({"latency_tallies", "tallies", "work_tallies"})
"""They can be made again from the others: no backup holds them."""
CLEAR = tuple(f"DELETE FROM {table}" for table in sorted(TABLES))


@dataclass(frozen=True)
class _Tally:
    """What a row of a table counts for, in SQL; `{row}` stands for the row.

    Attributes:
        name: Of its triggers.
        source: The table whose rows are counted.
        target: The table that `keys` and `sums` are columns of, with their values.
        joins: Tables and condition of the rows that it takes besides, if any.
        changing: Columns whose change changes the count.
        lock: On PostgreSQL held until the transaction ends: a row that another one adds at the same time on the other
            side of the join is seen by one of both.
        once: Another one counts the same rows when all are counted anew.
    """

    name: str
    source: str
    target: str
    keys: dict[str, str]
    sums: dict[str, str]
    joins: str = ""
    when: str = "true"
    changing: tuple[str, ...] = ()
    lock: str = ""
    once: bool = False


def count_all(dialect: str) -> list[str]:
    """The SQL that counts every row anew, once `CLEAR` has run."""
    statements = [_count(tally, dialect) for tally in _tallies(dialect) if not tally.once]
    return [*statements, *count_masks(dialect, 1)]


def count_masks(dialect: str, sign: int, images: str = "") -> list[str]:
    """The SQL that counts current masks of annotators by category, their clicks, imported masks that count, proposals.

    Args:
        dialect: sqlite or postgresql.
        sign: 1 or -1.
        images: Only those of these images: the parameter after an IN; empty for all.
    """
    category = "coalesce(CAST(i.category_number AS TEXT), '')"
    some = f" AND i.image_id IN {images}" if images else ""
    replaced = (
        "EXISTS (SELECT 1 FROM instances l JOIN sessions ls ON ls.id = l.session_id WHERE l.opened_mask_id = i.mask_id "
        "AND l.state IN ('accepted', 'deleted') AND ls.state = 'submitted')"
    )
    current = (
        "FROM instances i JOIN masks m ON m.id = i.mask_id JOIN sessions s ON s.id = i.session_id "
        f"WHERE i.state = 'accepted' AND s.state = 'submitted' AND m.source = 'annotator' AND NOT {replaced}{some}"
    )
    of_no_session = (
        "FROM instances i JOIN masks m ON m.id = i.mask_id "
        f"WHERE i.state = '{{state}}' AND i.session_id IS NULL AND NOT {replaced}{some}"
    )
    kinds = (
        ("mask", category, "count(*)", current),
        ("mask_click", category, "sum(m.num_clicks)", current),
        ("imported", "''", "count(*)", of_no_session.format(state="accepted")),
        ("proposal", "''", "count(*)", of_no_session.format(state="open")),
    )
    statements = []
    for kind, key, amount, rows in kinds:
        keys = {"campaign_id": "i.campaign_id", "kind": f"'{kind}'", "key": key}
        statements.append(
            _upsert("tallies", keys, {"amount": f"{sign} * {amount}"}, f"{rows} {_grouped(keys)}", dialect)
        )
    return statements


def triggers(table: str, dialect: str) -> list[str]:
    """The SQL of the triggers that count a table's rows."""
    return [
        statement
        for tally in _tallies(dialect)
        if tally.source == table
        for statement in (_sqlite_triggers(tally) if dialect == "sqlite" else _postgresql_triggers(tally))
    ]


def sources() -> list[str]:
    """The tables whose rows are counted by triggers."""
    return list(dict.fromkeys(tally.source for tally in _tallies("sqlite")))


def _tallies(dialect: str) -> list[_Tally]:
    def of(kind: str, key: str, campaign: str = "{row}.campaign_id") -> dict[str, str]:
        return {"campaign_id": campaign, "kind": f"'{kind}'", "key": key}

    amount = {"amount": "1"}
    took = _micros("a.server_time", "o.server_time", dialect)
    timed = f"CASE WHEN {took} <= {AWAY_S * 1_000_000} THEN"
    stages = " + ".join(f"coalesce({_number('{row}.latency_ms', stage, dialect)}, 0.0)" for stage in STAGES)
    edges = " ".join(f"WHEN {stages} < {to_ms} THEN {place}" for place, to_ms in enumerate(EDGES_MS[1:]))
    stored = _Tally(
        "stored", "embeddings", "tallies", of("embedding", "''", "i.campaign_id"), amount,
        joins="images i JOIN campaigns c ON c.id = i.campaign_id",
        when="i.sha256 = {row}.image_sha256 AND c.model_key = {row}.model_key",
        lock="pg_advisory_xact_lock(hashtextextended({row}.model_key, 0))",
    )  # fmt: skip
    encoded = _Tally(
        "encoded", "images", "tallies", of("embedding", "''"), amount,
        joins="campaigns c JOIN embeddings e ON e.model_key = c.model_key",
        when="c.id = {row}.campaign_id AND e.image_sha256 = {row}.sha256",
        lock="pg_advisory_xact_lock_shared(hashtextextended(c.model_key, 0)) FROM campaigns c "
        "WHERE c.id = {row}.campaign_id",
        once=True,
    )  # fmt: skip
    return [
        _Tally("kept", "images", "tallies", of("image", "CASE WHEN {row}.holdout THEN 'holdout' ELSE '' END"), amount),
        encoded,
        stored,
        _Tally("queued", "tasks", "tallies", of("task", "{row}.state"), amount, changing=("state",)),
        _Tally(
            "clicked", "events", "tallies", of("click", "''", "s.campaign_id"), amount,
            joins="sessions s", when="s.id = {row}.session_id AND {row}.kind = 'click'",
        ),
        _Tally(
            "computed", "event_results", "latency_tallies",
            {
                "campaign_id": "s.campaign_id",
                "slot": f"{_seconds('e.server_time', dialect)} / {SLOT_S}",
                "bin": f"CASE {edges} ELSE {len(EDGES_MS) - 1} END",
            },
            {"clicks": "1"},
            joins="events e JOIN sessions s ON s.id = e.session_id",
            when="e.event_id = {row}.event_id AND e.kind = 'click'",
            changing=("latency_ms",),
        ),
        _Tally(
            "accepted", "instances", "work_tallies",
            {
                "campaign_id": "{row}.campaign_id",
                "slot": f"{_seconds('m.created_at', dialect)} / {SLOT_S}",
                "annotator_id": "m.annotator_id",
                "adapter_digest": "coalesce(m.adapter_digest, '')",
                "category_number": f"coalesce({{row}}.category_number, {NO_CATEGORY})",
            },
            {
                "masks": "1",
                "clicks": "m.num_clicks",
                "micros": f"{timed} {took} ELSE 0 END",
                "timed": f"{timed} 1 ELSE 0 END",
            },
            joins="masks m JOIN events a ON a.event_id = m.event_id JOIN events o ON o.event_id = "
            "(SELECT f.event_id FROM events f WHERE f.instance_id = m.instance_id AND f.kind = 'open' "
            "ORDER BY f.server_time LIMIT 1)",
            when="m.id = {row}.mask_id AND {row}.state = 'accepted' AND m.source = 'annotator'",
            changing=("state", "mask_id", "category_number"),
        ),
    ]  # fmt: skip


def _count(tally: _Tally, dialect: str) -> str:
    """Every row of the table that is there."""
    rows = f"FROM {tally.source} r" + (f", {tally.joins}" if tally.joins else "")
    sums = {name: f"sum({value})" for name, value in tally.sums.items()}
    text = _upsert(tally.target, tally.keys, sums, f"{rows} WHERE {tally.when} {_grouped(tally.keys)}", dialect)
    return text.replace("{row}", "r")


def _grouped(keys: dict[str, str]) -> str:
    """By the keys that are no constants."""
    return "GROUP BY " + ", ".join(key for key in keys.values() if not key.startswith("'"))


def _change(tally: _Tally, row: str, sign: int, dialect: str) -> str:
    """One row that comes or goes."""
    text = _upsert(
        tally.target,
        tally.keys,
        {name: f"{sign} * ({value})" for name, value in tally.sums.items()},
        (f"FROM {tally.joins} " if tally.joins else "") + f"WHERE {tally.when}",
        dialect,
    )
    return text.replace("{row}", row)


def _upsert(target: str, keys: dict[str, str], sums: dict[str, str], rows: str, dialect: str) -> str:
    shard = "0" if dialect == "sqlite" else "pg_backend_pid()"
    added = ", ".join(f"{name} = {target}.{name} + excluded.{name}" for name in sums)
    return (
        f"INSERT INTO {target} ({', '.join((*keys, 'shard', *sums))}) "
        f"SELECT {', '.join((*keys.values(), shard, *sums.values()))} {rows} "
        f"ON CONFLICT ({', '.join((*keys, 'shard'))}) DO UPDATE SET {added}"
    )


def _moves(tally: _Tally, dialect: str) -> list[tuple[str, str, str, list[str]]]:
    """Name, event and condition of each trigger, and what it does."""
    comes, goes = _change(tally, "NEW", 1, dialect), _change(tally, "OLD", -1, dialect)
    moves = [("insert", "INSERT", "", [comes]), ("delete", "DELETE", "", [goes])]
    if tally.changing:
        different = "IS NOT" if dialect == "sqlite" else "IS DISTINCT FROM"
        cast = "::text" if dialect == "postgresql" else ""  # JSON there has no equality
        changed = " OR ".join(f"OLD.{name}{cast} {different} NEW.{name}{cast}" for name in tally.changing)
        moves.append(("update", f"UPDATE OF {', '.join(tally.changing)}", f"WHEN ({changed}) ", [goes, comes]))
    return moves


def _sqlite_triggers(tally: _Tally) -> list[str]:
    return [
        f"CREATE TRIGGER tally_{tally.name}_{name} AFTER {event} ON {tally.source} FOR EACH ROW {condition}"
        f"BEGIN {'; '.join(body)}; END"
        for name, event, condition, body in _moves(tally, "sqlite")
    ]


def _postgresql_triggers(tally: _Tally) -> list[str]:
    statements = []
    for name, event, condition, body in _moves(tally, "postgresql"):
        trigger = f"tally_{tally.name}_{name}"
        row = "OLD" if name == "delete" else "NEW"
        lock = [f"PERFORM {tally.lock.replace('{row}', row)}"] if tally.lock else []
        statements += [
            f"CREATE OR REPLACE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql AS $$\n"
            f"BEGIN\n    {''.join(f'{line}; ' for line in (*lock, *body))}\n    RETURN NULL;\nEND\n$$",
            f"CREATE TRIGGER {trigger} AFTER {event} ON {tally.source} FOR EACH ROW {condition}"
            f"EXECUTE FUNCTION {trigger}()",
        ]
    return statements


def _seconds(time: str, dialect: str) -> str:
    """Whole seconds since 1970."""
    if dialect == "sqlite":
        return f"CAST(strftime('%s', {time}) AS INTEGER)"
    return f"CAST(floor(extract(epoch FROM {time})) AS BIGINT)"


def _micros(later: str, earlier: str, dialect: str) -> str:
    """Microseconds between two times."""
    if dialect == "sqlite":  # times are text there, with six digits behind the point
        return " - ".join(
            f"(CAST(strftime('%s', {time}) AS INTEGER) * 1000000 + CAST(substr({time}, 21, 6) AS INTEGER))"
            for time in (later, earlier)
        )
    return f"CAST(extract(epoch FROM {later} - {earlier}) * 1000000 AS BIGINT)"


def _number(document: str, name: str, dialect: str) -> str:
    """A number in a JSON document."""
    if dialect == "sqlite":
        return f"json_extract({document}, '$.{name}')"
    return f"CAST({document} ->> '{name}' AS DOUBLE PRECISION)"
