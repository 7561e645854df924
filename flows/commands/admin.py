"""db upgrade and doctor."""

import argparse

from flows.commands.options import Nouns, command, group, settings_of
from flows.commands.terminal import Terminal, table


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    verbs = group(nouns, "db", "look after the database")
    command(verbs, common, "upgrade", upgrade, "bring the database to this program's version")
    checks = command(nouns, common, "doctor", doctor, "check this machine and workspace, part by part")
    checks.add_argument("--tune", action="store_true", help="measure which engine clicks are to run on, and keep it")


def upgrade(args: argparse.Namespace) -> int:
    """Upgrade the database; an embedded one is copied first."""
    from pipeline.storage.database import upgrade_database
    from pipeline.storage.lock import WorkspaceLock

    settings = settings_of(args)
    with WorkspaceLock(settings.workspace):
        before, after = upgrade_database(settings.resolved_database_url)
    text = f"The database is at {after}" + (f", it was at {before or 'none'}." if before != after else " already.")
    Terminal.of(args).result({"from": before, "to": after}, [text])
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Check each part; 1 when one that is needed fails. Or choose the engine."""
    if args.tune:
        return _tune(args)
    from flows.doctor import run_checks

    checks = run_checks(settings_of(args))
    rows = [("ok" if c.ok else ("FAILED" if c.needed else "absent"), c.name, c.detail) for c in checks]
    Terminal.of(args).result([c.model_dump() for c in checks], table(("", "PART", "FOUND"), rows))
    return 0 if all(c.ok or not c.needed for c in checks) else 1


def _tune(args: argparse.Namespace) -> int:
    from flows.tune import tune

    settings, terminal = settings_of(args), Terminal.of(args)
    found = tune(settings, terminal.progress)
    rows = [
        (
            own.engine,
            f"{own.step_ms:.1f}",
            f"{own.agreement:.4f}",
            f"{own.agreement_p5:.4f}",
            "yes" if own.agrees else "no",
        )
        for own in found.figures
    ]
    lines = table(("ENGINE", "MS/CLICK", "IOU WITH FLOAT32", "5TH PERCENTILE", "AGREES"), rows)
    told = f"{found.engine} is kept for new instances (measured: {found.images}). Restart `clickloop serve`."
    if settings.engine != "auto":
        told += f" CLICKLOOP_ENGINE={settings.engine} has the last word, though."
    terminal.result(found.model_dump(mode="json"), [*lines, told])
    return 0
