"""campaign create, ingest, list, status, pause and resume."""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from flows.client import find_server
from flows.commands.imports import annotations_url, imported
from flows.commands.jobs import follow, run_here, run_job
from flows.commands.options import Nouns, command, group, number, settings_of
from flows.commands.terminal import Terminal, table
from flows.commands.work import absolute_url
from schemas.errors import BadInputError, NotFoundError
from schemas.settings import Settings


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    verbs = group(nouns, "campaign", "make campaigns and look at them")
    parser = command(verbs, common, "create", create, "make a campaign and register its images in place")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--images", metavar="URL", required=True, help="folder, glob or bucket prefix")
    parser.add_argument("--labels", metavar="a,b,c", default="", help="category names")
    parser.add_argument("--annotations", metavar="FILE", help="masks that count as they are (see `import`)")
    parser.add_argument("--model", metavar="ID", default="default", help="model to pin (default: the shipped one)")
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help="its weights (.safetensors; see `model convert`)"
    )
    parser.add_argument("--holdout", type=number, metavar="SHARE", help="share of images kept for the gate (0.2)")
    parser.add_argument("--retrain-every", type=int, metavar="MASKS", help="retrain after so many new masks (0: never)")
    parser.add_argument(
        "--window",
        type=number,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="grey samples of 16 bits or float (each file's)",
    )
    parser.add_argument("--seed", type=int, help="of every random choice (0)")

    parser = command(verbs, common, "ingest", ingest, "look for new images again, or finish an interrupted ingest")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--images", metavar="URL", help="another source; default: the campaign's own")
    parser.add_argument("--readmit", action="store_true", help="take images again that were purged")

    command(verbs, common, "list", list_, "list the campaigns")
    for name, run, text in (
        ("status", status, "show the figures of a campaign"),
        ("pause", pause, "give out no more tasks"),
        ("resume", resume, "give out tasks again"),
    ):
        command(verbs, common, name, run, text).add_argument("name", metavar="NAME")


def _labels(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) != len(names):
        raise BadInputError(f"--labels {text!r} names a category twice.")
    return names


def create(args: argparse.Namespace) -> int:
    """Make a campaign, then ingest its images."""
    settings, terminal = settings_of(args), Terminal.of(args)
    chosen = {
        "holdout_fraction": args.holdout,
        "retrain_every_masks": args.retrain_every,
        "seed": args.seed,
        "window": args.window,
    }
    spec = {
        "id": str(uuid4()),
        "name": args.name,
        "images": absolute_url(args.images),
        "labels": _labels(args.labels),
        "annotations": annotations_url(args.annotations) if args.annotations is not None else None,
        "model": args.model,
        "checkpoint": str(args.checkpoint.resolve()) if args.checkpoint else None,
        "settings": {name: value for name, value in chosen.items() if value is not None},
    }
    server = find_server(settings)
    if server is None:
        spec["id"] = _checked_early(settings, spec)
        result = run_here(settings, terminal, "campaign", None, {"create": spec})
    else:
        with server:
            result = follow(server, terminal, server.call("POST", "/api/campaigns", spec)["request"]["id"])
    lines = [f"Campaign {result['name']} with model {result['model_id']}.", *_ingested(result["ingest"])]
    if "import" in result:
        lines += imported(result["import"])
    terminal.result(result, lines)
    return 0


def _checked_early(settings: Settings, spec: dict[str, Any]) -> str:
    """The id to make it by. What cannot work is refused before Prefect starts, which takes seconds; the flow checks it
    again."""
    from flows.services import reading
    from pipeline.campaigns import require_source
    from pipeline.storage.campaigns import id_to_create

    require_source(spec["images"])
    with suppress(NotFoundError), reading(settings) as database, database.connect() as conn:
        return id_to_create(conn, spec)
    return str(spec["id"])  # there is no database yet


def ingest(args: argparse.Namespace) -> int:
    """Register what is new."""
    settings, terminal = settings_of(args), Terminal.of(args)
    payload = {"images": absolute_url(args.images) if args.images is not None else None, "readmit": args.readmit}
    result = run_job(settings, terminal, "ingest", args.name, payload)
    terminal.result(result, _ingested(result))
    return 0


def _ingested(report: dict[str, Any]) -> list[str]:
    purged = f", {report['purged']} purged, skipped (--readmit takes them again)" if report["purged"] else ""
    lines = [
        f"{report['registered']} images registered, {report['duplicates']} duplicates, "
        f"{report['unchanged']} unchanged, {report['quarantined']} quarantined{purged}."
    ]
    if not report["files"]:
        lines.append("No image was found there. Put some there and run `clickloop campaign ingest`.")
    if report["ignored"]:
        lines.append(f"{report['ignored']} files are no images by their names, and were left out.")
    if report["moved"]:
        lines.append(f"{report['moved']} images moved: they are read from where their files are now.")
    if report["gone"]:
        lines.append(f"{report['gone']} files are not there any more; their images and labels stay:")
        lines += [f"  {uri}" for uri in report["gone_files"]]
        lines += ["  ..."] if report["gone"] > len(report["gone_files"]) else []
    return lines


def list_(args: argparse.Namespace) -> int:
    """List the campaigns."""
    from flows.services import reading
    from pipeline.storage import campaigns

    with reading(settings_of(args)) as database, database.connect() as conn:
        records = campaigns.list_campaigns(conn)
    rows = [
        (r.name, r.state, r.model_id, (r.live_adapter or "-")[:12], r.created_at.isoformat("T", "seconds"))
        for r in records
    ]
    lines = table(("NAME", "STATE", "MODEL", "ADAPTER", "CREATED"), rows) if rows else ["No campaigns."]
    Terminal.of(args).result([r.model_dump(mode="json") for r in records], lines)
    return 0


def status(args: argparse.Namespace) -> int:
    """Show the figures of one campaign."""
    from flows.services import reading
    from pipeline.storage import campaigns

    with reading(settings_of(args)) as database, database.connect() as conn:
        figures = campaigns.campaign_status(conn, campaigns.get_campaign(conn, args.name).id)
    record = figures.campaign
    besides = [f"{n} {what}" for n, what in ((figures.imported, "imported"), (figures.proposals, "proposals")) if n]
    others = f" (and {', '.join(besides)})" if besides else ""
    lines = [
        f"{record.name}: {record.state}, model {record.model_id}, adapter {(record.live_adapter or 'none')[:12]} "
        f"(version {record.live_version})",
        f"images      {figures.images} ({figures.holdout_images} held out), {figures.duplicates} duplicates, "
        f"{len(figures.quarantined)} quarantined",
        f"embeddings  {figures.embeddings}",
        "tasks       " + (", ".join(f"{n} {state}" for state, n in figures.tasks.items()) or "none"),
        f"masks       {figures.masks}{others}"
        + "".join(f", {n} {name}" for name, n in figures.masks_by_category.items()),
        f"clicks      {figures.clicks}"
        + (f" ({figures.clicks_per_mask:.2f} per mask)" if figures.clicks_per_mask is not None else ""),
    ]
    lines += [f"quarantined {entry.get('uri', '')}: {entry.get('reason', '')}" for entry in figures.quarantined]
    lines += [f"adapter     {a['digest'][:12]} {a['state']}" for a in figures.adapters]
    for request in figures.requests:
        why = (request.error or "").split("\n")[0]
        lines.append(f"request     {request.kind} {request.state} {why}".rstrip())
    Terminal.of(args).result(figures.model_dump(mode="json"), lines)
    return 0


def pause(args: argparse.Namespace) -> int:
    """Give out no more tasks."""
    return _set_state(args, "paused", "pause")


def resume(args: argparse.Namespace) -> int:
    """Give out tasks again."""
    return _set_state(args, "active", "resume")


def _set_state(args: argparse.Namespace, state: str, verb: str) -> int:
    settings = settings_of(args)
    server = find_server(settings)
    if server is None:
        from flows.services import owning, reading
        from pipeline.storage import campaigns

        with reading(settings) as database, database.connect() as conn:
            campaign_id = campaigns.get_campaign(conn, args.name).id
        with owning(settings) as database, database.begin() as conn:
            campaigns.set_campaign_state(conn, campaign_id, state)
    else:
        with server:
            server.call("POST", f"/api/campaigns/{quote(args.name, safe='')}/{verb}")
    Terminal.of(args).result({"name": args.name, "state": state}, [f"{args.name} is {state}."])
    return 0
