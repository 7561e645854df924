"""adapter list, show, promote and rollback."""

import argparse
from collections.abc import Iterator
from typing import Any

from flows.client import find_server
from flows.commands.options import Nouns, command, group, settings_of
from flows.commands.terminal import Terminal, table
from schemas.campaigns import CampaignRecord
from schemas.catalogue import AdapterRecord
from schemas.errors import BadCheckpointError, BadInputError, NotFoundError
from schemas.settings import Settings


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    verbs = group(nouns, "adapter", "look at a campaign's adapters, promote one, go back")
    for name, run, text in (
        ("list", list_, "list the adapters of a campaign"),
        ("show", show, "show one adapter: lineage, figures and what the gate said"),
        ("promote", promote, "make an adapter that passed the gate live"),
        ("rollback", rollback, "go back to what was live before"),
    ):
        parser = command(verbs, common, name, run, text)
        parser.add_argument("name", metavar="NAME", help="campaign")
        if name in ("show", "promote"):
            parser.add_argument("adapter", metavar="ADAPTER", help="its number or the beginning of its digest")


def _load(args: argparse.Namespace) -> tuple[CampaignRecord, list[AdapterRecord]]:
    from flows.services import reading
    from pipeline.storage import adapters, campaigns

    with reading(settings_of(args)) as database, database.connect() as conn:
        campaign = campaigns.get_campaign(conn, args.name)
        return campaign, adapters.list_adapters(conn, campaign.id)


def _pick(records: list[AdapterRecord], text: str) -> AdapterRecord:
    """The adapter with this number or digest prefix (at least 4 characters)."""
    number = int(text) if text.isdecimal() and len(text) < 10 else None
    found = [r for r in records if r.number == number or (len(text) >= 4 and r.digest.startswith(text))]
    if not found:
        raise NotFoundError(f"The campaign has no adapter {text!r}. See `clickloop adapter list`.")
    if len(found) > 1:
        raise BadInputError(f"{len(found)} adapters are called {text!r}. Give more of the digest.")
    return found[0]


def list_(args: argparse.Namespace) -> int:
    """List the adapters."""
    _, records = _load(args)
    rows = [
        (r.number, r.digest[:12], r.kind, r.state, _place(r), _clicks(r), r.created_at.isoformat("T", "seconds"))
        for r in records
    ]
    lines = table(("NUMBER", "DIGEST", "KIND", "STATE", "", "CLICKS", "CREATED"), rows) if rows else ["No adapters."]
    Terminal.of(args).result([r.model_dump(mode="json") for r in records], lines)
    return 0


def _place(record: AdapterRecord) -> str:
    return "live" if record.live else "removed" if record.removed_at else ""


def _clicks(record: AdapterRecord) -> str:
    """What a held-out mask took with the adapter that was live, and with this one, as the gate measured."""
    figures = record.gate.get("figures", {})
    both = figures.get("live_noc"), figures.get("candidate_noc")
    return "" if None in both else f"{both[0]:.2f} -> {both[1]:.2f}"


def show(args: argparse.Namespace) -> int:
    """Show one adapter."""
    _, records = _load(args)
    record = _pick(records, args.adapter).model_dump(mode="json")
    Terminal.of(args).result(record, [f"{name:<42}{value}" for name, value in _facts(record)])
    return 0


def _facts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """What a nested record holds, piece by piece: ("gate.figures.improvement.mean", "1.565")."""
    if isinstance(value, list):
        value = {str(place): part for place, part in enumerate(value)}
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _facts(part, f"{name}.{key}" if name else key)
    elif value is not None:
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def promote(args: argparse.Namespace) -> int:
    """Make an adapter live by hand."""
    campaign, records = _load(args)
    chosen = _pick(records, args.adapter)
    digest = chosen.digest
    settings = settings_of(args)
    server = find_server(settings)
    if server is None:
        from flows.services import owning
        from pipeline.storage import adapters

        adapters.require_file(chosen)
        with owning(settings) as database:
            _try(settings, campaign, digest)
            with database.begin() as conn:
                version = adapters.promote(conn, campaign.id, digest, campaign.live_version)
    else:
        with server:
            path = f"/api/campaigns/{campaign.id}/adapters/{digest}/promote"
            version = server.call("POST", path, {"expected_version": campaign.live_version})["live_version"]
    return _changed(args, {"version": version, "live_adapter": digest})


def rollback(args: argparse.Namespace) -> int:
    """Go back to what was live before."""
    campaign, _ = _load(args)
    settings = settings_of(args)
    server = find_server(settings)
    if server is None:
        from flows.services import owning
        from pipeline.storage import adapters

        problem = None
        with owning(settings) as database:
            with database.connect() as conn:
                previous = adapters.before_live(conn, campaign)
            try:  # takes seconds: whoever is interrupted then and asks again is not to go back twice
                _try(settings, campaign, previous)
            except (NotFoundError, BadCheckpointError) as error:
                problem = adapters.problem_of_live(error)
            with database.begin() as conn:
                version, digest = adapters.rollback(conn, campaign.id, campaign.live_version)
    else:
        with server:
            seen = {"expected_version": campaign.live_version}  # a call sent twice goes back once
            answer = server.call("POST", f"/api/campaigns/{campaign.id}/rollback", seen)
            version, digest, problem = answer["live_version"], answer["live_adapter"], answer["problem"]
    return _changed(args, {"version": version, "live_adapter": digest, "problem": problem})


def _try(settings: Settings, campaign: CampaignRecord, digest: str | None) -> None:
    """Load weights, as the refiners of a server would.

    Raises:
        NotFoundError: The storage has no such file.
        BadCheckpointError: A file is corrupt or does not fit.
    """
    from pipeline.storage.weights import load_model_by_digest

    load_model_by_digest(settings.resolved_storage_url, campaign.model_digest, digest)


def _changed(args: argparse.Namespace, record: dict[str, Any]) -> int:
    live = (record["live_adapter"] or "the bare model")[:14]
    problem = record.get("problem")
    Terminal.of(args).result(record, [f"Live: {live} (version {record['version']}).", *([problem] if problem else [])])
    return 0
