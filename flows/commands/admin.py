"""db upgrade and doctor."""

import argparse

from flows.commands.options import Nouns, command, group, settings_of
from flows.commands.terminal import Terminal, table


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    verbs = group(nouns, "db", "look after the database")
    command(verbs, common, "upgrade", upgrade, "bring the database to this program's version")
    command(nouns, common, "doctor", doctor, "check this machine and workspace, part by part")


def upgrade(args: argparse.Namespace) -> int:
    """Upgrade the database; an embedded one is copied first."""
    from pipeline.storage.database import upgrade_database
    from pipeline.storage.lock import WorkspaceLock

    settings = settings_of(args)
    settings.workspace.mkdir(parents=True, exist_ok=True)
    with WorkspaceLock(settings.workspace):
        before, after = upgrade_database(settings.resolved_database_url)
    text = f"The database is at {after}" + (f", it was at {before or 'none'}." if before != after else " already.")
    Terminal.of(args).result({"from": before, "to": after}, [text])
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Check each part; 1 when one that is needed fails."""
    from flows.doctor import run_checks

    checks = run_checks(settings_of(args))
    rows = [("ok" if c.ok else ("FAILED" if c.needed else "absent"), c.name, c.detail) for c in checks]
    Terminal.of(args).result([c.model_dump() for c in checks], table(("", "PART", "FOUND"), rows))
    return 0 if all(c.ok or not c.needed for c in checks) else 1
