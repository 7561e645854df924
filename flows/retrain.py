"""Flow: snapshot -> train -> evaluate on held-out images -> gate -> verify in the refiners -> promote.

The work is in `pipeline.adapters`, done by the trainer actor; what is decided and why is in `pipeline.adapters.gate`.
"""

from pathlib import Path
from typing import Any

import ray
from prefect import flow, task

from flows.jobs import current_job, job_scope
from flows.options import FLOW, STEP
from pipeline.adapters.data import read_holdout_images, read_retrain_images
from pipeline.adapters.evaluate import AdapterReport
from pipeline.adapters.gate import GateConfig, decide
from pipeline.adapters.train import AdapterConfig
from pipeline.storage import adapters, snapshots
from schemas.catalogue import SnapshotRecord
from schemas.errors import ConflictError
from workers.trainer import EvaluateJob, TrainedAdapter, TrainJob

POLL_S = 1.0


@flow(name="retrain", **FLOW)
def retrain_flow(campaign: str, adapter: str = "head", promote: str = "auto") -> dict[str, Any]:
    """Train an adapter on the accepted masks and let it go live if it is better.

    Args:
        campaign: Name or id.
        adapter: Kind of adapter.
        promote: auto: when the gate agrees; never: only tell what the gate says.

    Returns:
        Outcome (promoted, agreed, rejected or nothing to learn from), reasons, the adapter's digest, the snapshot, NoC
        before and after.
    """
    with job_scope("retrain", campaign, {"adapter": adapter, "promote": promote}) as job:
        snapshot = take_snapshot(campaign)
        facts: dict[str, Any] = {"snapshot": snapshot.number, "masks": snapshot.masks}
        trained = train(campaign, snapshot.id, adapter) if snapshot.masks else None
        if trained is None or trained.digest is None:
            reason = "training found nothing better" if snapshot.masks else "no accepted masks on training images"
            return job.done(facts | {"outcome": "nothing to learn from", "reasons": [reason], "digest": None})
        live, candidate = evaluate(campaign, trained.digest)
        facts |= {"digest": trained.digest, "live": live.summary(), "candidate": candidate.summary()}
        return job.done(facts | conclude(campaign, trained.digest, live, candidate, promote))


@task(name="take snapshot", **STEP)
def take_snapshot(campaign: str) -> SnapshotRecord:
    """The current masks of the training images; a retried request keeps its snapshot."""
    job = current_job()
    known = job.request.progress.get("snapshot_id")
    with job.services.database.begin() as conn:
        if known:
            snapshot = snapshots.get_snapshot(conn, known)
        else:
            campaign_id = job.services.campaign(campaign).id
            snapshot = snapshots.create_snapshot(conn, campaign_id, "retrain", {"holdout": False})
    job.progress(step="snapshot", snapshot_id=snapshot.id, masks=snapshot.masks)
    return snapshot


@task(name="train adapter", **STEP)
def train(campaign: str, snapshot_id: str, kind: str) -> TrainedAdapter:
    """Train (or go on from the request's checkpoint), publish the file and register it as a candidate."""
    job = current_job()
    services = job.services
    record = services.campaign(campaign)
    with services.database.connect() as conn:
        images = tuple(read_retrain_images(conn, snapshot_id))
    seed = record.settings.seed
    order = TrainJob(
        job_id=job.request.id,
        storage_url=services.storage_url,
        model_digest=record.model_digest,
        model_key=record.model_key,
        parent_digest=record.live_adapter,
        campaign_id=record.id,
        snapshot_id=snapshot_id,
        kind=kind,
        images=images,
        config=AdapterConfig(kind=kind, seed=seed),
        work_dir=str(_work_dir()),
    )
    trained: TrainedAdapter = _follow("train", lambda actor: actor.train.remote(order))
    if trained.digest is not None:
        with services.database.begin() as conn:
            adapters.register_adapter(
                conn,
                digest=trained.digest,
                campaign_id=record.id,
                kind=kind,
                uri=trained.uri,
                model_digest=record.model_digest,
                model_key=record.model_key,
                parent_digest=record.live_adapter,
                snapshot_id=snapshot_id,
                seed=trained.seed,
                metrics=trained.metrics,
            )
    return trained


@task(name="evaluate adapters", **STEP)
def evaluate(campaign: str, digest: str) -> tuple[AdapterReport, AdapterReport]:
    """The live adapter (or bare model) and the candidate on the held-out images."""
    job = current_job()
    services = job.services
    record = services.campaign(campaign)
    with services.database.connect() as conn:
        images = tuple(read_holdout_images(conn, record.id))
    order = EvaluateJob(
        job_id=job.request.id,
        storage_url=services.storage_url,
        model_digest=record.model_digest,
        model_key=record.model_key,
        adapters=(record.live_adapter, digest),
        images=images,
    )
    live, candidate = _follow("evaluate", lambda actor: actor.evaluate.remote(order))
    with services.database.begin() as conn:
        for adapter, report in ((record.live_adapter, live), (digest, candidate)):
            adapters.record_evaluation(
                conn,
                campaign_id=record.id,
                model_digest=record.model_digest,
                adapter_digest=adapter,
                report=report.summary(),
            )
    return live, candidate


@task(name="gate and promote", **STEP)
def conclude(campaign: str, digest: str, live: AdapterReport, candidate: AdapterReport, promote: str) -> dict[str, Any]:
    """Ask the gate; where it agrees, verify the adapter in every refiner and make it live by compare-and-set."""
    job = current_job()
    services = job.services
    record = services.campaign(campaign)
    decision = decide(live.objects, candidate.objects, GateConfig(seed=record.settings.seed))
    state = "candidate" if decision.promote else "rejected"
    with services.database.begin() as conn:
        adapters.set_gate(conn, digest, state, decision.to_json(), candidate.summary())
    facts: dict[str, Any] = {"reasons": list(decision.reasons), "gate": decision.figures}
    if not decision.promote:
        return facts | {"outcome": "rejected"}
    if promote == "never":
        return facts | {"outcome": "agreed", "reasons": ["the gate agrees; promotion was not asked for"]}
    job.progress(step="promote")
    ray.get([actor.load.remote(record.model_digest, digest) for actor in services.refiners()])
    try:
        with services.database.begin() as conn:
            version = adapters.promote(conn, record.id, digest, record.live_version)
    except ConflictError as error:
        return facts | {"outcome": "rejected", "reasons": [error.message]}
    return facts | {"outcome": "promoted", "reasons": ["better on the held-out images"], "version": version}


def _follow(step: str, start: Any) -> Any:
    """Start a call of the trainer and wait for it, passing on its progress and the wish to stop."""
    job = current_job()
    trainer = job.services.trainer()
    ref = start(trainer)
    asked = False
    while True:
        ready, _ = ray.wait([ref], timeout=POLL_S)
        if ready:
            job.check()
            return ray.get(ref)
        if job.should_stop() and not asked:
            ray.get(trainer.cancel.remote(job.request.id))
            asked = True
        job.progress(step=step, **ray.get(trainer.progress.remote()))


def _work_dir() -> Path:
    folder = current_job().services.settings.workspace.resolve() / "training"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
