"""Models and adapters in the catalogue: lineage, the gate's verdict, and which adapter is live.

Promotion and rollback are compare-and-set on `campaigns.live_version`. Knows nothing about weights.
"""

from typing import Any, get_args

from sqlalchemy import Connection, Row, func, insert, select, update

from pipeline.storage.numbers import next_number
from pipeline.storage.sql import insert_into, new_id, one
from schemas.campaigns import CampaignRecord
from schemas.catalogue import AdapterRecord, ModelRecord
from schemas.columns import db_now
from schemas.errors import BadInputError, ClickloopError, ConflictError, NotFoundError, StateError
from schemas.tables import Adapter, AdapterState, Campaign, Evaluation, Model, Promotion


def register_model(conn: Connection, digest: str, model_id: str, uri: str, size: int) -> None:
    """Note model weights in the storage; known digests stay as they are."""
    values = {"digest": digest, "model_id": model_id, "uri": uri, "size_bytes": size, "created_at": db_now()}
    conn.execute(insert_into(conn, Model).values(**values).on_conflict_do_nothing(index_elements=["digest"]))


def get_model(conn: Connection, digest: str) -> ModelRecord:
    """Model weights by digest.

    Raises:
        NotFoundError: There are none.
    """
    row = one(conn, select(Model.__table__).where(Model.digest == digest))
    if row is None:
        raise NotFoundError(f"There are no model weights {digest[:12]}... in the catalogue.")
    return ModelRecord(**row._mapping)


def register_adapter(
    conn: Connection,
    *,
    digest: str,
    campaign_id: str,
    kind: str,
    uri: str,
    model_digest: str,
    model_key: str,
    parent_digest: str | None,
    snapshot_id: str | None,
    seed: int,
    metrics: dict[str, Any] | None = None,
) -> int:
    """Note a trained adapter, whose file is stored, as a candidate; the same one again gives the same number.

    Returns:
        Its number in the campaign, from 1.

    Raises:
        NotFoundError: There is no such campaign.
        ConflictError: The same bytes are another campaign's adapter.
    """
    number = next_number(conn, Adapter, campaign_id)
    found = one(conn, select(Adapter.campaign_id, Adapter.number).where(Adapter.digest == digest))
    if found is not None:
        if found.campaign_id != campaign_id:
            raise ConflictError("Another campaign has this very adapter.", campaign_id=found.campaign_id)
        conn.execute(update(Adapter).where(Adapter.digest == digest).values(removed_at=None))
        return int(found.number)
    conn.execute(
        insert(Adapter).values(
            digest=digest,
            campaign_id=campaign_id,
            number=number,
            kind=kind,
            uri=uri,
            model_digest=model_digest,
            model_key=model_key,
            parent_digest=parent_digest,
            snapshot_id=snapshot_id,
            seed=seed,
            state="candidate",
            metrics=metrics or {},
            gate={},
            created_at=db_now(),
        )
    )
    return number


def get_adapter(conn: Connection, digest: str) -> AdapterRecord:
    """An adapter by digest.

    Raises:
        NotFoundError: There is none.
    """
    row = one(conn, _query().where(Adapter.digest == digest))
    if row is None:
        raise NotFoundError(f"There is no adapter {digest[:12]!r}. `clickloop adapter list` shows them.")
    return _record(row)


def list_adapters(conn: Connection, campaign_id: str) -> list[AdapterRecord]:
    """Adapters of a campaign by number."""
    query = _query().where(Adapter.campaign_id == campaign_id).order_by(Adapter.number)
    return [_record(row) for row in conn.execute(query)]


def set_gate(
    conn: Connection, digest: str, state: str, gate: dict[str, Any], metrics: dict[str, Any] | None = None
) -> None:
    """Write down the gate's verdict (`gate["promote"]` is a bool) and, if given, the metrics.

    Raises:
        BadInputError: `state` is none of an adapter's.
        NotFoundError: There is no such adapter.
    """
    if state not in get_args(AdapterState):
        raise BadInputError(f"An adapter is {', '.join(get_args(AdapterState))}; not {state!r}.")
    values: dict[str, Any] = {"state": state, "gate": gate} | ({} if metrics is None else {"metrics": metrics})
    if conn.execute(update(Adapter).where(Adapter.digest == digest).values(**values)).rowcount == 0:
        raise NotFoundError(f"There is no adapter {digest[:12]!r}.")


def promote(conn: Connection, campaign_id: str, digest: str | None, expected_version: int) -> int:
    """Make an adapter (None: the bare model) live, if nobody changed what is live meanwhile.

    Args:
        conn: Write transaction.
        campaign_id: The campaign.
        digest: The adapter.
        expected_version: `live_version` that the caller saw.

    Returns:
        The new `live_version`.

    Raises:
        NotFoundError: There is no such campaign or adapter.
        StateError: The adapter has not passed the gate, reads another model, or its file was removed.
        ConflictError: What is live has changed; `details["live_version"]` is the current one.
    """
    campaign = _locked(conn, campaign_id)
    _require_version(campaign, expected_version)
    if digest is not None:
        _check_promotable(get_adapter(conn, digest), campaign)
    return _make_live(conn, campaign, digest, "promote")


def rollback(conn: Connection, campaign_id: str, expected_version: int | None = None) -> tuple[int, str | None]:
    """Make live again what was live before the last promotion that still stands; rolling back again goes further back.

    Args:
        conn: Write transaction.
        campaign_id: The campaign.
        expected_version: `live_version` that the caller saw; None: whatever is live.

    Returns:
        The new `live_version` and the adapter that is live (None: the bare model).

    Raises:
        NotFoundError: There is no such campaign.
        StateError: Nothing was promoted, or the file of what was live before was removed.
        ConflictError: What is live has changed; `details["live_version"]` is the current one.
    """
    campaign = _locked(conn, campaign_id)
    if expected_version is not None:
        _require_version(campaign, expected_version)
    previous = before_live(conn, campaign)
    return _make_live(conn, campaign, previous, "rollback"), previous


def before_live(conn: Connection, campaign: Row[Any] | CampaignRecord) -> str | None:
    """What rolling back makes live (None: the bare model).

    Raises:
        StateError: Nothing was promoted, or the file of what was live before was removed.
    """
    live = standing_promotions(conn, campaign.id)
    if len(live) == 1:
        raise StateError("Nothing to roll back to: the bare model is live.", live_version=campaign.live_version)
    previous = live[-2]
    if previous is not None:
        require_file(get_adapter(conn, previous))
    return previous


def problem_of_live(error: ClickloopError) -> str:
    """What to say where a rollback made live what does not load: it is not refused, as going on leads past it."""
    return f"What is live now does not load: {error.message} Roll back once more, or bring the file back."


def standing_promotions(conn: Connection, campaign_id: str) -> list[str | None]:
    """What rolling back goes through, from its end: the bare model (None), each promotion that still stands, the live
    one last."""
    history = select(Promotion.adapter_digest, Promotion.reason).where(Promotion.campaign_id == campaign_id)
    live: list[str | None] = [None]
    for digest, reason in conn.execute(history.order_by(Promotion.version)):
        if reason == "promote":
            live.append(digest)
        else:
            live.pop()
    return live


def record_evaluation(
    conn: Connection,
    *,
    campaign_id: str | None,
    model_digest: str,
    adapter_digest: str | None,
    report: dict[str, Any],
) -> str:
    """Store an evaluation report; returns its id."""
    evaluation_id = new_id()
    conn.execute(
        insert(Evaluation).values(
            id=evaluation_id,
            campaign_id=campaign_id,
            model_digest=model_digest,
            adapter_digest=adapter_digest,
            report=report,
            created_at=db_now(),
        )
    )
    return evaluation_id


def list_evaluations(conn: Connection, campaign_id: str) -> list[dict[str, Any]]:
    """Evaluations of a campaign, oldest first: the columns of the table."""
    query = select(Evaluation.__table__).where(Evaluation.campaign_id == campaign_id)
    return [dict(row._mapping) for row in conn.execute(query.order_by(Evaluation.created_at, Evaluation.id))]


def _locked(conn: Connection, campaign_id: str) -> Row[Any]:
    row = one(conn, select(Campaign.__table__).where(Campaign.id == campaign_id).with_for_update(key_share=True))
    if row is None:
        raise NotFoundError(f"There is no campaign {campaign_id!r}.")
    return row


def _require_version(campaign: Row[Any], expected: int) -> None:
    if campaign.live_version != expected:
        raise ConflictError(
            f"Version {campaign.live_version} is live by now, not {expected}. Look again, then decide.",
            live_version=campaign.live_version,
            live_adapter=campaign.live_adapter,
        )


def _check_promotable(adapter: AdapterRecord, campaign: Row[Any]) -> None:
    if adapter.campaign_id != campaign.id:
        raise NotFoundError(f"Adapter {adapter.digest[:12]} is not of this campaign.")
    if (adapter.model_digest, adapter.model_key) != (campaign.model_digest, campaign.model_key):
        raise StateError(f"Adapter {adapter.number} was trained for another model than the campaign's.")
    if adapter.state == "rejected" or adapter.gate.get("promote") is not True:
        raise StateError(
            f"Adapter {adapter.number} has not passed the gate ({adapter.state}); it cannot go live.", gate=adapter.gate
        )
    against = adapter.gate.get("against", campaign.live_adapter)
    if adapter.state == "candidate" and against != campaign.live_adapter:
        then = f"adapter {against[:12]}" if against else "the bare model"
        raise StateError(
            f"Adapter {adapter.number} was found better than {then}, which is not live any more. Retrain, to compare "
            "with what is.",
            gate=adapter.gate,
        )
    require_file(adapter)


def require_file(adapter: AdapterRecord) -> None:
    """To be asked before an adapter's weights are loaded, of which the storage can only say that they are not there.

    Raises:
        StateError: `clickloop gc` removed them.
    """
    if adapter.removed_at is not None:
        raise StateError(
            f"The weights of adapter {adapter.number} were removed by `clickloop gc` on "
            f"{adapter.removed_at.isoformat(' ', 'seconds')}. Retrain, or promote another one.",
            adapter=adapter.digest,
        )


def _make_live(conn: Connection, campaign: Row[Any], digest: str | None, reason: str) -> int:
    version = int(campaign.live_version) + 1
    conn.execute(update(Campaign).where(Campaign.id == campaign.id).values(live_adapter=digest, live_version=version))
    conn.execute(
        insert(Promotion).values(
            campaign_id=campaign.id,
            version=version,
            adapter_digest=digest,
            previous_digest=campaign.live_adapter,
            reason=reason,
            created_at=db_now(),
        )
    )
    for adapter, state in ((campaign.live_adapter, "retired"), (digest, "promoted")):
        if adapter is not None:
            conn.execute(update(Adapter).where(Adapter.digest == adapter).values(state=state))
    return version


def _query() -> Any:
    live = func.coalesce(Campaign.live_adapter, "") == Adapter.digest
    return select(Adapter.__table__, live.label("live")).join(Campaign, Campaign.id == Adapter.campaign_id)


def _record(row: Row[Any]) -> AdapterRecord:
    return AdapterRecord(**row._mapping)
