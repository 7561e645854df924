"""An instance keeps the engine that it was opened with: over a change of the setting, and in replay."""

from pathlib import Path

from flows.replay import replay
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.masks import current_masks
from tests.workers.api.gateway import CAMPAIGN, Work, gateway_in, local_router, serving, settings_in


def test_an_instance_is_clicked_and_replayed_with_its_engine(tmp_path: Path) -> None:
    with gateway_in(tmp_path, engine="torch-bfloat16") as gateway, gateway.http() as http:
        work = Work(http)
        old = work.opened()
        shown = work.click(old)["mask"]
        assert shown["engine"]["dtype"] == "bfloat16"
        later = settings_in(tmp_path, engine="torch-float32")
        database = gateway.services.database
        with serving(later, database, local_router(later.resolved_storage_url)) as second, second.http() as http:
            work.http = http
            new = work.opened()
            assert work.click(new, 90, 60)["mask"]["engine"]["dtype"] == "float32"
            shown = work.click(old, 85, 70)["mask"]
            assert shown["engine"]["dtype"] == "bfloat16"
            pins = {instance["id"]: instance["pins"]["engine"] for instance in work.state()["instances"]}
            assert (pins[old]["dtype"], pins[new]["dtype"]) == ("bfloat16", "float32")
            work.do("accept", old, seq=work.seq, mask_sha256=shown["mask_sha256"])
            work.do("delete", new)
            work.do("submit")
        with database.connect() as conn:
            (mask,) = current_masks(conn, get_campaign(conn, CAMPAIGN).id)
            campaign = get_campaign(conn, CAMPAIGN)
        assert mask.engine is not None and mask.engine["dtype"] == "bfloat16"
        report = replay(later, database, campaign)
        assert report.ok and report.masks == 1 and report.events >= 3, report
