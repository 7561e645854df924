"""Flow: snapshot -> train -> evaluate on held-out images -> gate -> verify in the refiners -> promote.

The work is in `pipeline.adapters`, done by the trainer actor; what is decided and why is in `pipeline.adapters.gate`.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from flows.jobs import current_job, job_scope
from flows.options import as_flow, as_step
from pipeline.adapters.data import read_holdout_images, read_retrain_images
from pipeline.adapters.evaluate import AdapterReport
from pipeline.adapters.gate import GateConfig, decide
from pipeline.adapters.steps import AdapterConfig
from pipeline.models import outline_of
from pipeline.storage import adapters, snapshots
from schemas.campaigns import CampaignRecord
from schemas.catalogue import SnapshotRecord
from schemas.errors import BusyError, ConflictError
from schemas.requests import AdapterKind
from workers.pool import cause_of
from workers.trainer import EvaluateJob, TrainedAdapter, TrainJob

logger = logging.getLogger(__name__)

POLL_S = 1.0
HANGS_S = 20.0
"""Seconds that a trainer whose job is to stop may be silent."""


@as_flow("retrain")
def retrain_flow(
    campaign: str,
    adapter: AdapterKind | None = None,
    promote: str = "auto",
    minutes: float | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Train an adapter on the accepted masks and let it go live if it is better.

    Args:
        campaign: Name or id.
        adapter: Kind of adapter; None: what is best for the model and so many masks.
        promote: auto: when the gate agrees; never: only tell what the gate says.
        minutes: Limit of training.
        steps: Limit of training.

    Returns:
        outcome (promoted, agreed, rejected, no data), reasons, digest, snapshot, how many images could not be read, and
        the figures on held-out images before and after.
    """
    payload = {"adapter": adapter, "promote": promote, "minutes": minutes, "steps": steps}
    with job_scope("retrain", campaign, payload) as job:
        record = job.services.campaign(campaign)
        snapshot = take_snapshot(record)
        facts: dict[str, Any] = {"snapshot": snapshot.number, "masks": snapshot.masks}
        if not snapshot.masks:
            return job.done(facts | _no_data())
        config = AdapterConfig.for_masks(
            snapshot.masks,
            kind=adapter or outline_of(record.model_id).default_adapter(snapshot.masks),
            seed=record.settings.seed,
            max_minutes=minutes,
            max_steps=steps,
        )
        trained = train(record, snapshot.id, config)
        assert trained.digest is not None, "or the step had failed"
        facts["unreadable"] = trained.metrics["unreadable"]
        live, candidate = evaluate(record, trained.digest)
        facts |= {"digest": trained.digest, "before": live.summary(), "after": candidate.summary()}
        return job.done(facts | conclude(record, trained.digest, live, candidate, promote))


def _no_data() -> dict[str, Any]:
    reason = "no accepted masks on training images, not promoted"
    return {"outcome": "no data", "reasons": [reason], "digest": None, "before": None, "after": None}


@as_step("take snapshot")
def take_snapshot(record: CampaignRecord) -> SnapshotRecord:
    """The current masks of the training images; a retried request keeps its snapshot."""
    job = current_job()
    known = job.request.progress.get("snapshot_id")
    with job.services.database.begin() as conn:
        if known:
            snapshot = snapshots.get_snapshot(conn, known)
        else:
            snapshot = snapshots.create_snapshot(conn, record.id, "retrain", {"holdout": False})
    job.progress(step="snapshot", snapshot_id=snapshot.id, masks=snapshot.masks)
    return snapshot


@as_step("train adapter")
def train(record: CampaignRecord, snapshot_id: str, config: AdapterConfig) -> TrainedAdapter:
    """Train (or go on from the request's checkpoint), publish the file and register it as a candidate.

    Raises:
        BusyError: The trainer was told to stop by somebody else.
    """
    job = current_job()
    services = job.services
    with services.database.connect() as conn:
        images = tuple(read_retrain_images(conn, snapshot_id))
    lineage: dict[str, Any] = {
        "campaign_id": record.id,
        "kind": config.kind,
        "model_digest": record.model_digest,
        "model_key": record.model_key,
        "parent_digest": record.live_adapter,
        "snapshot_id": snapshot_id,
    }
    order = TrainJob(
        **lineage,
        job_id=job.request.id,
        storage_url=services.storage_url,
        images=images,
        config=config,
        work_dir=str(services.settings.workspace.resolve() / "training"),
    )
    trained: TrainedAdapter = _follow(lambda trainer: trainer.train.remote(order))
    if trained.digest is None:
        raise _stopped("Training")
    facts: dict[str, Any] = {"uri": trained.uri, "seed": trained.seed, "metrics": trained.metrics}
    with services.database.begin() as conn:
        adapters.register_adapter(conn, digest=trained.digest, **lineage, **facts)
    return trained


@as_step("evaluate adapters")
def evaluate(record: CampaignRecord, digest: str) -> tuple[AdapterReport, AdapterReport]:
    """The live adapter (or bare model) and the candidate on the held-out images.

    Raises:
        BusyError: The trainer was told to stop by somebody else.
    """
    job = current_job()
    services = job.services
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
    reports = _follow(lambda trainer: trainer.evaluate.remote(order))
    if len(reports) < len(order.adapters):
        raise _stopped("Evaluating")
    live, candidate = reports
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


@as_step("gate and promote")
def conclude(
    record: CampaignRecord, digest: str, live: AdapterReport, candidate: AdapterReport, promote: str
) -> dict[str, Any]:
    """Ask the gate; where it agrees, verify the adapter in every refiner and make it live by compare-and-set."""
    job = current_job()
    services = job.services
    decision = decide(live.objects, candidate.objects, GateConfig(seed=record.settings.seed))
    state = "candidate" if decision.promote else "rejected"
    with services.database.begin() as conn:
        adapters.set_gate(conn, digest, state, decision.to_json() | {"against": record.live_adapter})
    facts: dict[str, Any] = {"reasons": list(decision.reasons), "gate": decision.figures}
    if not decision.promote:
        return facts | {"outcome": "rejected"}
    if promote == "never":
        return facts | {"outcome": "agreed", "reasons": ["the gate agrees, promotion was not asked for"]}
    job.progress(step="promote")
    services.pool(job.check).load_everywhere(record.model_digest, digest)
    try:
        with services.database.begin() as conn:
            version = adapters.promote(conn, record.id, digest, record.live_version)
    except ConflictError as error:
        return facts | {"outcome": "rejected", "reasons": [error.message]}
    return facts | {"outcome": "promoted", "reasons": ["better on the held-out images"], "version": version}


def _stopped(what: str) -> BusyError:
    return BusyError(f"{what} was stopped, though nobody cancelled this request. Ask for the retrain again.")


def _follow(start: Callable[[Any], Any]) -> Any:
    """Start a call of the trainer and wait for it, passing on its progress and the wish to stop."""
    job = current_job()
    services = job.services
    trainer = services.pool(job.check).trainer()
    ref = start(trainer)
    heard = time.monotonic()
    while True:
        ready, _ = ray.wait([ref], timeout=POLL_S)
        if ready:
            job.check()
            try:
                return ray.get(ref)
            except RayTaskError as error:
                raise cause_of(error) from None
        services.check_actors()
        if job.should_stop():
            trainer.cancel.remote(job.request.id)  # each time: one that was killed meanwhile does not know
        told = _progress_of(trainer)
        if told is not None:
            heard = time.monotonic()
            job.progress(**told)
        elif not job.should_stop():
            heard = time.monotonic()  # it may start yet: on a cluster a node is brought for it
        elif time.monotonic() - heard > HANGS_S:
            logger.warning("the trainer does not answer: it is ended, as its job is to stop")
            ray.kill(trainer)
            job.check()


def _progress_of(trainer: Any) -> dict[str, Any] | None:
    """What the trainer says; None while it does not answer: it is being restarted, or hangs."""
    try:
        told = dict(ray.get(trainer.progress.remote(), timeout=POLL_S))
    except (RayActorError, GetTimeoutError):
        return None
    told.pop("job_id", None)
    for theirs, ours in (("step", "done"), ("max_steps", "total"), ("phase", "step")):  # as the other jobs say it
        if theirs in told:
            told[ours] = told.pop(theirs)
    return told
