"""Simulated annotators against a real gateway: they label everything, survive its restart, and repeat themselves."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from pipeline.masks.rle import mask_to_rle
from pipeline.storage.database import open_database
from pipeline.storage.masks import current_masks
from schemas.errors import BusyError
from tests.workers.api.gateway import CAMPAIGN, Gateway, fill, gateway_in, local_router, serving, settings_in
from tests.workers.campaign import make_campaign
from workers import session_client
from workers.annotator import Robot, SimulatedAnnotator, read_truth, run_annotators
from workers.session_client import Api, RefusedError, SessionClient, patiently


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:120, :160]
    return (rows - 60) ** 2 + (columns - 80) ** 2 <= 30**2


def write_truth(folder: Path, images: int, objects: int = 1) -> Path:
    """The disc of every image, under the names that `make_campaign` gives."""
    rle = mask_to_rle(disc()).model_dump(mode="json")
    document: dict[str, Any] = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": 160, "height": 120} for i in range(images)],
        "annotations": [
            {"id": 1 + i * objects + k, "image_id": i + 1, "category_id": 7, "segmentation": rle, "iscrowd": 0}
            for i in range(images)
            for k in range(objects)
        ],
        "categories": [{"id": 7, "name": "disc"}],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(document))
    return path


def test_two_annotators_label_every_image_once(tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=6) as gateway:
        truth = write_truth(tmp_path, images=5)
        report = run_annotators(gateway.url, "discs", truth, annotators=2, target=0.8).to_json()
        with gateway.services.database.connect() as conn:
            masks = current_masks(conn, CAMPAIGN)
    assert report["errors"] == []
    assert (report["images"], report["masks"], report["objects"], report["unmatched_images"]) == (5, 5, 5, 1)
    assert report["mean_iou"] > 0.8 and report["nof"] == 0 and report["noc"] < 10
    assert report["latency_ms"]["count"] == report["clicks"] >= 5
    assert len({mask.image_id for mask in masks}) == 5
    assert {mask.category_number for mask in masks} == {1}


def test_same_seed_gives_the_same_clicks_and_false_ones_make_more(tmp_path: Path) -> None:
    def clicks(name: str, **robot: Any) -> int:
        folder = tmp_path / name
        folder.mkdir()
        with gateway_in(folder, images=3) as gateway:
            truth = read_truth(write_truth(folder, images=3))
            person = SimulatedAnnotator(gateway.url, CAMPAIGN, truth, Robot(target=0.8, **robot), "ann")
            return person.run().clicks

    careful = clicks("careful")
    hurried = clicks("hurried", false_clicks=0.3, repeat_clicks=0.5, seed=4)
    assert hurried == clicks("again", false_clicks=0.3, repeat_clicks=0.5, seed=4)
    assert hurried > careful


def test_limit_stops_all_annotators_together(tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=5) as gateway:
        truth = write_truth(tmp_path, images=5)
        seen: list[dict[str, Any]] = []
        report = run_annotators(
            gateway.url, CAMPAIGN, truth, annotators=2, target=0.7, limit=3, progress=seen.append
        ).to_json()
    assert report["images"] == 3 and seen


def test_truth_of_another_size_is_an_error_in_the_report(tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=1) as gateway:
        path = write_truth(tmp_path, images=1)
        document = json.loads(path.read_text())
        document["images"][0].update(width=8, height=8)
        document["annotations"][0]["segmentation"] = mask_to_rle(np.ones((8, 8), bool)).model_dump(mode="json")
        path.write_text(json.dumps(document))
        report = run_annotators(gateway.url, CAMPAIGN, path).to_json()
    assert report["masks"] == 0 and "size" in report["errors"][0]


def test_session_client_goes_on_after_the_gateway_was_restarted(tmp_path: Path) -> None:
    stored = make_campaign(tmp_path, images=1)
    database = open_database(f"sqlite:///{tmp_path / 'clickloop.db'}")
    fill(database, stored)
    router = local_router(stored.storage_url)
    instance = str(uuid4())
    with serving(settings_in(tmp_path), database, router) as first:
        api = Api(first.url, "ann")
        claim = api.call("POST", f"/api/campaigns/{CAMPAIGN}/claim", {"claim_id": str(uuid4())})
        session = SessionClient(api, claim)
        session.send("open", instance)
        before = session.send("click", instance, x=80, y=60, is_positive=True)
        port = int(first.url.rsplit(":", 1)[1])
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.append(session.send("click", instance, x=60, y=60, is_positive=True))
    )
    waiting.start()
    with serving(settings_in(tmp_path).model_copy(update={"port": port}), database, router) as second:
        waiting.join(30)
        assert answers and answers[0].seq == 3
        assert session.epoch == 2
        undone = session.send("undo", instance, event_id=answers[0].event_id)
        assert undone.mask is not None and before.mask is not None
        assert undone.mask.mask_sha256 == before.mask.mask_sha256
        session.close()
        _check_log(second, claim["session_id"])
    api.close()
    database.close()


def _check_log(gateway: Gateway, session_id: str) -> None:
    with gateway.http() as http:
        events = http.get(f"/api/sessions/{session_id}/events").json()["results"]
    assert [(event["seq"], event["kind"]) for event in events] == [(1, "open"), (2, "click"), (3, "click"), (4, "undo")]


def test_refusals_are_not_repeated_and_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_client, "PATIENCE_S", 0.3)
    calls: list[int] = []

    def refused() -> None:
        calls.append(1)
        raise RefusedError("no", "conflict")

    with pytest.raises(RefusedError):
        patiently(refused)
    assert len(calls) == 1
    with pytest.raises(BusyError):
        Api("http://127.0.0.1:9", "ann").call("GET", "/healthz")


@pytest.mark.parametrize(("status", "calls"), [(200, 1), (404, 1), (502, 2)])
def test_answers_that_are_no_json_of_ours_are_told_and_a_proxys_are_waited_out(status: int, calls: int) -> None:
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = b"<html>Bad Gateway</html>" if len(asked) == 1 else b"{}"
            self.send_response(status if len(asked) == 1 else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Not on the tests' output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = Api(f"http://127.0.0.1:{server.server_port}", "ann")
        try:
            if calls == 1:
                with pytest.raises(RefusedError, match=rf"/healthz answered {status} with something else"):
                    api.call("GET", "/healthz")
            else:
                assert api.call("GET", "/healthz") == {}
        finally:
            api.close()
            server.shutdown()
    assert len(asked) == calls
