"""Backup of a whole catalogue with the weights it names, and its restoring into either database.

A backup is a folder (or object prefix): every table as Parquet parts, the files, and last of all `manifest.json` with
the digest of each: without a manifest there is no backup. Tables are read from the database as it is, whatever its
revision; restoring makes the tables of that revision, fills them, and runs the migrations from there, in one
transaction. Images, embeddings and exports are not in it: the first are somebody else's, the others can be made again.
"""

import contextlib
import hashlib
import io
import json
import logging
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from pydantic import AfterValidator, BaseModel, ValidationError
from sqlalchemy import JSON, Boolean, Connection, DateTime, Float, Integer, MetaData, Table, func, insert, select, text
from sqlalchemy.exc import IntegrityError

from pipeline.storage.database import Database, database_revision, is_in_use, knows_revision, migrate
from pipeline.storage.files import (
    exists,
    files_below,
    join,
    leaves_root,
    open_storage,
    read_bytes,
    sha256_stored,
    telling,
    write_atomic,
)
from pipeline.storage.sql import batches
from pipeline.storage.tallies import recount
from schemas.errors import (
    BadInputError,
    CorruptDataError,
    DatabaseUnavailableError,
    DatabaseVersionError,
    NotFoundError,
)
from schemas.settings import sqlite_url
from schemas.tallies import TABLES

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
PART_ROWS = 50_000
_VERSION_TABLE = "alembic_version"
_NOT_KEPT = {_VERSION_TABLE, *TABLES}
_INSERT_ROWS = 1000


def _inside(path: str) -> str:
    """A path below a folder: a backup may come from anywhere, and is not to write outside the storage."""
    if not path or "\0" in path or leaves_root(path):
        raise ValueError("a path that leaves its folder")
    return path


_Path = Annotated[str, AfterValidator(_inside)]


class Part(BaseModel):
    """One file of a backup: where it is below the backup, sha256 of its bytes, their number."""

    path: _Path
    sha256: str
    size_bytes: int


class TableParts(BaseModel):
    """A table: its rows in all parts together."""

    rows: int
    parts: list[Part]


class Manifest(BaseModel):
    """What a whole backup holds.

    Attributes:
        revision: Of the database when it was read.
        storage_root: Where the files were, without protocol.
        files: Weights, by their path below the storage.
        missing: Paths that the catalogue names and the storage did not have.
    """

    format: int = FORMAT
    created_at: datetime
    dialect: str
    revision: str
    storage_root: str
    tables: dict[str, TableParts]
    files: dict[_Path, Part]
    missing: list[str]

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables.values())


class Restored(BaseModel):
    """What a restore came to.

    Attributes:
        manifest: Of the backup.
        revision: Of the database now.
        forgotten_embeddings: Rows left out, as the storage does not have these embeddings; precompute makes them again.
    """

    manifest: Manifest
    revision: str
    forgotten_embeddings: int


def backup(database_url: str, storage_url: str, target_url: str) -> Manifest:
    """Write a backup while others go on working: what was committed when it began, and nothing else.

    Args:
        database_url: SQLAlchemy URL of the catalogue.
        storage_url: Where its models and adapters are.
        target_url: Folder or object prefix without a backup in it.

    Returns:
        What is in it.

    Raises:
        BadInputError: There is a backup in the target already, or the database is empty.
        DatabaseVersionError: The database is another program's, or of a newer one.
        DatabaseUnavailableError: The database cannot be read.
        CorruptDataError: A weights file has other bytes than its name says; nothing that can be restored is left.
        OutOfSpaceError: The target is full; likewise.
    """
    fs, root = open_storage(target_url)
    if exists(fs, join(root, MANIFEST)):
        raise BadInputError(f"There is a backup in {target_url} already. Name another folder.")
    revision = database_revision(database_url)
    if revision is None:
        raise BadInputError("The database is empty: there is nothing to back up.")
    storage, storage_root = open_storage(storage_url)
    with _frozen(database_url) as conn:
        tables = {t.name: _dump(conn, t, fs, root) for t in _tables(conn).sorted_tables if t.name not in _NOT_KEPT}
        revision = str(conn.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar_one())
        with telling(f"Reading {storage_url}"):
            names, dialect = _weights(conn, storage, storage_root), conn.info["clickloop_dialect"]
    files, missing = {}, []
    for name in names:
        with telling(f"Reading {storage_url}"):
            content = _read_if_there(storage, join(storage_root, name))
        if content is None:
            missing.append(name)
            continue
        _check_name(name, content)
        files[name] = _put(fs, root, f"storage/{name}", content)
    manifest = Manifest(
        created_at=datetime.now(UTC),
        dialect=dialect,
        revision=revision,
        storage_root=storage_root,
        tables=tables,
        files=files,
        missing=missing,
    )
    write_atomic(fs, join(root, MANIFEST), manifest.model_dump_json(indent=1).encode())
    logger.info("backup written to=%s rows=%d files=%d", target_url, manifest.rows, len(files))
    return manifest


def restore(source_url: str, database_url: str, storage_url: str, *, replace: bool = False) -> Restored:
    """Bring a backup back: files first, then the database, in one transaction and up to this program's revision.

    Nobody else may use the database meanwhile.

    Args:
        source_url: Where the backup is.
        database_url: SQLAlchemy URL; SQLite or PostgreSQL, whichever the backup came from.
        storage_url: Where the files go; those that are there stay.
        replace: Throw away what the database holds.

    Raises:
        NotFoundError: There is no whole backup.
        CorruptDataError: A file of it has other bytes than when it was written; nothing was changed.
        DatabaseVersionError: It was made by a newer program; or the database is another program's, or (without
            `replace`) a newer one's.
        DatabaseUnavailableError: The database is gone, or somebody else uses it; it is as it was.
        BadInputError: The database is not empty, and `replace` was not given.
    """
    fs, root = open_storage(source_url)
    manifest = read_manifest(source_url)
    _verify(fs, root, manifest, source_url)
    storage, storage_root = open_storage(storage_url)
    with closing(Database(database_url)) as database:
        try:
            database_revision(database_url)
        except DatabaseVersionError as error:
            if not (replace and error.details.get("found")):  # a newer one of ours may be thrown away, no foreign one
                raise
        if not replace and (full := _first_full_table(database)):
            raise BadInputError(
                f"The database holds rows (in {full}, for one). Restore into an empty one, or say --replace to throw "
                "away what it holds."
            )
        _restore_files(fs, root, manifest, storage, storage_root)
        with _telling_who_is_in_the_way(), database.begin() as conn:
            _drop_all(conn)
            migrate(conn, manifest.revision)
            try:
                forgotten = _fill(conn, fs, root, manifest, storage, storage_root)
            except (LookupError, TypeError, ValueError, pa.ArrowException, IntegrityError) as error:
                raise CorruptDataError(
                    f"A table of the backup in {source_url} does not hold what its manifest says: "
                    f"{str(error).partition(chr(10))[0]}. Nothing was restored. Use another backup."
                ) from error
            migrate(conn, "head")
            recount(conn)
            revision = str(conn.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar_one())
    logger.info("backup restored from=%s rows=%d revision=%s", source_url, manifest.rows, revision)
    return Restored(manifest=manifest, revision=revision, forgotten_embeddings=forgotten)


def read_manifest(source_url: str) -> Manifest:
    """What a backup says about itself.

    Raises:
        NotFoundError: There is no whole backup.
        CorruptDataError: The manifest cannot be read.
        DatabaseVersionError: It was made by a newer program.
    """
    fs, root = open_storage(source_url)
    try:
        found = json.loads(read_bytes(fs, join(root, MANIFEST)))
        if isinstance(found, dict) and "snapshot" in found:
            raise NotFoundError(f"{source_url} holds an export, no backup. Exports are read by `clickloop import`.")
        version, revision = int(found["format"]), str(found["revision"])
        if version > FORMAT or not knows_revision(revision):
            raise DatabaseVersionError(
                f"The backup in {source_url} was made by a newer clickloop (database revision {revision}). "
                "Install that one."
            )
        return Manifest.model_validate(found)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"There is no whole backup in {source_url}: {MANIFEST}, which is written last, is missing."
        ) from error
    except NotADirectoryError as error:
        raise NotFoundError(f"{source_url} is a file. Give the backup's folder, which holds {MANIFEST}.") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ValidationError) as error:
        raise CorruptDataError(f"{MANIFEST} in {source_url} is damaged. Use another backup.") from error


@contextmanager
def _telling_who_is_in_the_way() -> Iterator[None]:
    """PostgreSQL waits for whoever has a table in use, and says no more than that it took too long."""
    try:
        yield
    except DatabaseUnavailableError as error:
        who = " Stop what uses the database, such as gateways and runners." if is_in_use(error) else ""
        raise DatabaseUnavailableError(f"Nothing was restored: {error.message}{who}") from error


@contextmanager
def _frozen(database_url: str) -> Iterator[Connection]:
    """A connection that sees the database as it is now for as long as the block runs, and holds up nobody."""
    with closing(Database(database_url)) as database, contextlib.ExitStack() as stack:
        dialect = database.dialect
        if dialect == "sqlite":  # a copy: a long read would keep the WAL from being emptied
            with tempfile.TemporaryDirectory(prefix="clickloop-backup-") as folder:
                copy = Path(folder) / "copy.db"
                _copy_sqlite(str(database.engine.url.database), copy)
                database = stack.enter_context(closing(Database(sqlite_url(copy))))
                conn = stack.enter_context(database.connect())
                conn.execute(text("SELECT count(*) FROM sqlite_master"))
            # Its name is gone and the connection has it still: nothing is left behind however this process ends.
        else:
            conn = stack.enter_context(database.engine.connect())
            conn = conn.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            stack.enter_context(conn.begin())
        conn.info["clickloop_dialect"] = dialect
        yield conn


def _copy_sqlite(path: str, target: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=10.0)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        room = f" Make room in {target.parent.parent}, or name another folder in TMPDIR."
        advice = room if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR} else ""
        raise DatabaseUnavailableError(f"Cannot copy {path} to {target}: {error}.{advice}") from error


def _tables(conn: Connection) -> MetaData:
    """The tables that the database has, whatever its revision."""
    metadata = MetaData()
    metadata.reflect(conn)
    for table in metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, JSON):
                column.type = JSON(none_as_null=True)
    return metadata


def _dump(conn: Connection, table: Table, fs: AbstractFileSystem, root: str) -> TableParts:
    schema = pa.schema([(column.name, _arrow_type(column.type)) for column in table.columns])
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=PART_ROWS)
    parts: list[Part] = []
    count = 0
    for rows in conn.execute(query).partitions():
        columns = {
            column.name: [_portable(row[index], column.type) for row in rows]
            for index, column in enumerate(table.columns)
        }
        sink = io.BytesIO()
        pq.write_table(pa.table(columns, schema), sink, compression="zstd")
        parts.append(_put(fs, root, f"tables/{table.name}-{len(parts):05d}.parquet", sink.getvalue()))
        count += len(rows)
    return TableParts(rows=count, parts=parts)


def _arrow_type(kind: Any) -> pa.DataType:
    if isinstance(kind, Boolean):
        return pa.bool_()
    if isinstance(kind, Integer):
        return pa.int64()
    if isinstance(kind, Float):
        return pa.float64()
    if isinstance(kind, DateTime):
        return pa.timestamp("us", "UTC")
    return pa.string()  # text, and JSON as text


def _portable(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, JSON):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(kind, DateTime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


def _native(value: Any, kind: Any, dialect: str) -> Any:
    if value is None:
        return None
    if isinstance(kind, JSON):
        return json.loads(value)
    if isinstance(kind, DateTime) and dialect == "sqlite":
        return value.astimezone(UTC).replace(tzinfo=None)
    return value


def _put(fs: AbstractFileSystem, root: str, name: str, content: bytes) -> Part:
    write_atomic(fs, join(root, name), content)
    return Part(path=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def _weights(conn: Connection, storage: AbstractFileSystem, root: str) -> list[str]:
    """Paths below the storage of the models and adapters that the catalogue names."""
    models = conn.execute(text("SELECT digest FROM models UNION SELECT model_digest FROM campaigns")).scalars().all()
    names = [f"models/{digest}{ending}" for digest in sorted(models) for ending in (".safetensors", ".json")]
    storage.invalidate_cache()
    adapters = _tables(conn).tables["adapters"]
    there = [adapters.c.removed_at.is_(None)] if "removed_at" in adapters.c else []
    for digest in sorted(conn.execute(select(adapters.c.digest).where(*there)).scalars()):
        folder = join(root, "adapters", digest)
        beside = [path.removeprefix(f"{folder}/") for path in files_below(storage, folder)]
        names += sorted({f"adapters/{digest}/{name}" for name in {*beside, "weights.safetensors"}})
    return names


def _read_if_there(fs: AbstractFileSystem, path: str) -> bytes | None:
    try:
        return read_bytes(fs, path)
    except FileNotFoundError:
        return None


def _check_name(name: str, content: bytes) -> None:
    """Weights are named by their digest."""
    parts = name.removesuffix(".safetensors").split("/")
    if name.endswith(".safetensors") and hashlib.sha256(content).hexdigest() != parts[1]:
        raise CorruptDataError(f"{name} has changed: its bytes are not those of its name. Restore it from a backup.")


def _verify(fs: AbstractFileSystem, root: str, manifest: Manifest, source_url: str) -> None:
    for part in [*(part for table in manifest.tables.values() for part in table.parts), *manifest.files.values()]:
        try:
            found = sha256_stored(fs, join(root, part.path))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            found = ("", 0)
        if found != (part.sha256, part.size_bytes):
            what = "is missing" if not found[0] else "has other bytes than when it was written"
            raise CorruptDataError(f"{part.path} of the backup in {source_url} {what}. Nothing was restored.")


def _first_full_table(database: Database) -> str | None:
    with database.connect() as conn:
        for table in _tables(conn).sorted_tables:
            if table.name != _VERSION_TABLE and conn.execute(select(1).select_from(table).limit(1)).first():
                return table.name
    return None


def _drop_all(conn: Connection) -> None:
    metadata = MetaData()
    metadata.reflect(conn)
    metadata.drop_all(conn)


def _restore_files(
    fs: AbstractFileSystem, root: str, manifest: Manifest, storage: AbstractFileSystem, storage_root: str
) -> None:
    for name, part in manifest.files.items():
        path = join(storage_root, name)
        if exists(storage, path) and sha256_stored(storage, path) == (part.sha256, part.size_bytes):
            continue
        write_atomic(storage, path, read_bytes(fs, join(root, part.path)))


def _fill(
    conn: Connection,
    fs: AbstractFileSystem,
    root: str,
    manifest: Manifest,
    storage: AbstractFileSystem,
    storage_root: str,
) -> int:
    """Insert all rows; returns how many embeddings were left out."""
    metadata, forgotten = _tables(conn), 0
    if unknown := manifest.tables.keys() - metadata.tables.keys():
        raise CorruptDataError(f"The backup has tables that revision {manifest.revision} has not: {sorted(unknown)}.")
    stored = _stored_embeddings(storage, storage_root)
    for table in metadata.sorted_tables:
        if table.name not in manifest.tables:
            continue
        rows: Iterable[dict[str, Any]] = _rows(conn, fs, root, table, manifest.tables[table.name])
        if table.name in ("models", "adapters"):
            rows = (_moved(row, manifest.storage_root, storage_root) for row in rows)
        skipped = 0
        if table.name == "embeddings":
            kept = [row for row in rows if (row["model_key"], row["image_sha256"]) in stored]
            skipped = forgotten = manifest.tables[table.name].rows - len(kept)
            rows = kept
        for batch in batches(_parents_first(table, rows), _INSERT_ROWS):
            conn.execute(insert(table), batch)
        count = int(conn.execute(select(func.count()).select_from(table)).scalar_one())
        if count + skipped != manifest.tables[table.name].rows:
            raise CorruptDataError(
                f"{table.name} has {count} rows, the manifest says {manifest.tables[table.name].rows}."
            )
        _continue_numbering(conn, table)
    return forgotten


def _rows(
    conn: Connection, fs: AbstractFileSystem, root: str, table: Table, parts: TableParts
) -> Iterator[dict[str, Any]]:
    kinds = {column.name: column.type for column in table.columns}
    for part in parts.parts:
        content = read_bytes(fs, join(root, part.path))
        for batch in pq.ParquetFile(io.BytesIO(content)).iter_batches(_INSERT_ROWS):
            for row in batch.to_pylist():
                yield {name: _native(value, kinds[name], conn.dialect.name) for name, value in row.items()}


def _moved(row: dict[str, Any], before: str, now: str) -> dict[str, Any]:
    """A row whose file lies in another storage now."""
    uri = str(row["uri"])
    return row | {"uri": join(now, uri.removeprefix(before).lstrip("/"))} if uri.startswith(f"{before}/") else row


def _stored_embeddings(storage: AbstractFileSystem, root: str) -> set[tuple[str, str]]:
    """(model key, image digest) of what the storage has: one listing, in place of a look per row."""
    storage.invalidate_cache()
    names = files_below(storage, join(root, "embeddings"))
    paths = [name.removesuffix(".safetensors").split("/") for name in names if name.endswith(".safetensors")]
    return {(path[-3], path[-1]) for path in paths if len(path) > 2}


def _parents_first(table: Table, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows in an order in which each comes after the row of the same table that it names."""
    own = [key for key in table.foreign_keys if key.column.table is table]
    if not own:
        yield from rows
        return
    (key,) = own
    waiting: dict[Any, list[dict[str, Any]]] = {}
    seen: set[Any] = set()
    for row in rows:
        parent = row[key.parent.name]
        if parent is not None and parent not in seen:
            waiting.setdefault(parent, []).append(row)
            continue
        ready = [row]
        while ready:
            current = ready.pop()
            yield current
            seen.add(current[key.column.name])
            ready += waiting.pop(current[key.column.name], [])
    yield from (row for rows_left in waiting.values() for row in rows_left)  # the database refuses them


def _continue_numbering(conn: Connection, table: Table) -> None:
    """PostgreSQL numbers rows by sequences, which inserted numbers do not move."""
    if conn.dialect.name != "postgresql":
        return
    for column in table.primary_key.columns:
        if isinstance(column.type, Integer):
            names = {"table": table.name, "column": column.name}
            sequence = conn.execute(text("SELECT pg_get_serial_sequence(:table, :column)"), names).scalar_one()
            highest = conn.execute(select(func.max(column))).scalar_one()
            if sequence is not None and highest is not None:
                conn.execute(text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest})
