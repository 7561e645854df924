"""backup and restore of the catalogue and the weights that it names."""

import argparse
from typing import TYPE_CHECKING

from flows.commands.options import Nouns, command, settings_of
from flows.commands.terminal import Terminal
from flows.commands.work import absolute_url
from schemas.errors import BadInputError, NotFoundError

if TYPE_CHECKING:
    from pipeline.storage.backup import Manifest


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    parser = command(nouns, common, "backup", backup, "copy database and weights, while everything goes on")
    parser.add_argument("to", metavar="DIR_OR_URL", help="folder or bucket prefix without a backup in it")
    parser = command(nouns, common, "restore", restore, "bring a backup back, into SQLite or PostgreSQL")
    parser.add_argument("source", metavar="DIR_OR_URL", help="where the backup is")
    parser.add_argument("--replace", action="store_true", help="throw away what the database holds now")


def backup(args: argparse.Namespace) -> int:
    """Write a backup."""
    from pipeline.storage import backup as backups
    from pipeline.storage.files import storage_error
    from pipeline.storage.lock import is_there

    settings = settings_of(args)
    path = settings.sqlite_path
    if path is not None and not is_there(path):
        raise NotFoundError(f"There is no database at {path}: nothing to back up. Is --workspace right?")
    target = absolute_url(args.to)
    try:
        manifest = backups.backup(settings.resolved_database_url, settings.resolved_storage_url, target)
    except OSError as error:
        if "://" in target:
            raise storage_error(error, f"Writing to {target}") from error
        raise BadInputError(f"Cannot write to {target}: {error.strerror or error}. Name another folder.") from error
    lines = [
        f"{manifest.rows} rows of {len(manifest.tables)} tables and {len(manifest.files)} files are in {target}.",
        *(f"Missing in the storage, and so in the backup: {name}" for name in manifest.missing),
    ]
    Terminal.of(args).result(_facts(manifest), lines)
    return 0


def restore(args: argparse.Namespace) -> int:
    """Bring a backup back, under the workspace lock."""
    from pipeline.storage import backup as backups
    from pipeline.storage.files import storage_error
    from pipeline.storage.lock import WorkspaceLock

    settings = settings_of(args)
    source = absolute_url(args.source)
    storage = settings.resolved_storage_url
    with WorkspaceLock(settings.workspace):
        try:
            done = backups.restore(source, settings.resolved_database_url, storage, replace=args.replace)
        except OSError as error:
            if "://" in source + storage:
                raise storage_error(error, f"Restoring {source} into {storage}") from error
            why = f"{error.strerror} ({error.filename})" if error.strerror and error.filename else error
            raise BadInputError(f"Cannot restore {source} into {storage}: {why}. The database is as it was.") from error
    manifest = done.manifest
    lines = [f"{manifest.rows - done.forgotten_embeddings} rows and {len(manifest.files)} files are back; the database "
             f"is at {done.revision}, the backup was at {manifest.revision}."]  # fmt: skip
    if done.forgotten_embeddings:
        lines.append(
            f"{done.forgotten_embeddings} embeddings are not in the storage: run `clickloop precompute` again."
        )
    lines += [f"Not in the backup, as it was missing then: {name}" for name in manifest.missing]
    Terminal.of(args).result({**_facts(manifest), "forgotten_embeddings": done.forgotten_embeddings}, lines)
    return 0


def _facts(manifest: "Manifest") -> dict[str, object]:
    return {
        "revision": manifest.revision,
        "created_at": manifest.created_at,
        "tables": {name: table.rows for name, table in manifest.tables.items()},
        "files": sorted(manifest.files),
        "missing": manifest.missing,
    }
