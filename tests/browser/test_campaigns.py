"""The campaigns' page in a real browser against a real gateway: figures, plots, jobs, exports, images, corrections."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.export.snapshot import export_snapshot
from pipeline.storage.adapters import get_adapter, promote, register_adapter, set_gate
from pipeline.storage.annotators import create_token
from pipeline.storage.campaigns import add_categories, create_campaign, get_campaign
from pipeline.storage.requests import claim_request, finish_request, heartbeat, insert_request, list_requests
from pipeline.storage.sessions import list_sessions, session_events
from schemas.campaigns import RequestRecord
from tests.browser.desk import Visit
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, gateway_in

pytestmark = pytest.mark.browser

EVIL = '<img src="x" onerror="window.hacked = true">'
TIMEOUT_MS = 20_000


def label(gateway: Gateway, annotator: str, category: int) -> None:
    """Accept the disc of the next image and submit it; of category 2 nobody is sure."""
    with gateway.http(annotator) as http:
        work = Work(http)
        instance = work.opened()
        mask = work.click(instance)["mask"]
        work.do("accept", instance, seq=mask["seq"], mask_sha256=mask["mask_sha256"], category=category)
        if category == 2:
            work.do("flag", instance, unsure=True)
        work.do("submit")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two images labelled by ada, the second unsure, one by bob, one skipped, of 30; a category's name is markup."""
    with gateway_in(tmp_path_factory.mktemp("campaigns"), images=30) as running:
        with running.services.database.begin() as conn:
            add_categories(conn, CAMPAIGN, [EVIL])
        for annotator, category in (("ada", 1), ("ada", 2), ("bob", 3)):
            label(running, annotator, category)
        with running.http("bob") as http:
            Work(http).do("skip", reason="<b>too dark</b>")
        yield running


def finish_export(gateway: Gateway, request_id: str) -> str:
    """Do what the flow runner does for a claimed export; the folder."""
    to = f"{gateway.services.settings.resolved_storage_url}/snapshots/{request_id}"
    database = gateway.services.database
    with database.connect() as conn:
        campaign = get_campaign(conn, CAMPAIGN)
    report = export_snapshot(database, campaign, to, ["coco"])
    result = {"snapshot": report.snapshot_number, **report.model_dump(mode="json")}
    with database.begin() as conn:
        finish_request(conn, request_id, "runner", "done", result)
    return to


class Desk(Visit):
    """The page as a person sees it."""

    timeout_ms = TIMEOUT_MS

    def begin(self, name: str = "eve") -> None:
        """The first visit: a name is asked for once."""
        self.page.goto(f"{self.gateway.url}/campaigns")
        self.page.get_by_role("textbox", name="Your name").fill(name)
        self.page.get_by_role("button", name="Go on", exact=True).click()
        self.page.get_by_role("link", name="discs").wait_for()

    def open(self, tab: str = "Overview") -> None:
        """From the first visit to a part of the campaign."""
        self.begin()
        self.page.get_by_role("link", name="discs").click()
        self.page.get_by_role("link", name=tab, exact=True).click()
        self.page.get_by_role("link", name=tab, exact=True).and_(self.page.locator("[aria-current=page]")).wait_for()

    def wait_plots(self) -> None:
        """Until the campaign's plots are drawn."""
        self.wait(lambda: self.page.locator("figure.plot svg").count() == 12)

    def drawn_tiles(self, *numbers: int) -> Any:
        """The grid once it shows just the images of these numbers and all are drawn."""
        shown = "tiles => tiles.map((tile) => Number(tile.ariaLabel.match(/\\d+/)[0]))"
        self.wait(lambda: self.page.locator(".tile").evaluate_all(shown) == list(numbers))
        self.wait(lambda: self.page.locator(".tile[data-drawn]").count() == len(numbers))
        return self.page.locator(".tile")


@contextmanager
def desk_at(browser: Any, gateway: Gateway, **options: Any) -> Iterator[Desk]:
    """A fresh browser profile; fails when the page logs an error or ran what a name says."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
    desk = Desk(context.new_page(), gateway)
    yield desk
    hacked = desk.page.evaluate("window.hacked === true")
    context.close()
    assert desk.errors == [] and not hacked


@pytest.fixture
def desk(browser: Any, gateway: Gateway) -> Iterator[Desk]:
    with desk_at(browser, gateway) as opened:
        yield opened


def requests_of(gateway: Gateway, kind: str) -> list[RequestRecord]:
    """Requests of a kind, newest first."""
    with gateway.services.database.connect() as conn:
        return list_requests(conn, CAMPAIGN, kind=kind)


def test_figures_and_plots_tell_what_was_done(desk: Desk) -> None:
    desk.open()
    figures = desk.page.locator(".figures")
    figures.wait_for()
    told = dict(
        zip(figures.locator("dt").all_inner_texts(), figures.locator("dd strong").all_inner_texts(), strict=True)
    )
    assert (told["Images"], told["Masks"], told["Clicks per mask"]) == ("30", "3", "1.0")
    plots = desk.page.locator("figure.plot")
    desk.wait_plots()
    assert plots.count() == 12
    by_category = desk.page.get_by_role("img", name=re.compile(r"^Clicks per mask by category: disc 1, blob 1, <img"))
    assert by_category.locator("rect").count() == 3
    over_time = desk.page.get_by_role("img", name=re.compile("^Masks accepted per 5 minutes, "))
    heights = [float(bar.get_attribute("height")) for bar in over_time.locator("rect").all()]
    assert heights and min(heights) > 10
    ticks = desk.page.get_by_role("img", name=re.compile("^Clicks per mask, ")).locator("text[text-anchor=end].tick")
    assert ticks.all_text_contents()[:3] == ["0", "0.5", "1"]  # a tick at 0.25 would have a label that is not its value
    latency = desk.page.get_by_role("img", name=re.compile("^Click latency in the refiners, ms. Half of 3 clicks took"))
    assert latency.locator("rect").count() > 0
    desk.page.get_by_text("Values", exact=True).nth(6).click()
    assert desk.page.get_by_role("rowheader", name=EVIL).first.is_visible()


def test_names_that_are_markup_stay_text(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=2) as gateway:
        with gateway.services.database.begin() as conn:
            mine = get_campaign(conn, CAMPAIGN)
            facts = {"model_id": mine.model_id, "model_digest": mine.model_digest, "model_key": mine.model_key}
            campaign_id = str(uuid4())
            create_campaign(conn, campaign_id=campaign_id, name=EVIL, source_url=EVIL, labels=[EVIL], **facts)
        with desk_at(browser, gateway) as desk:
            desk.begin()
            desk.page.get_by_role("link", name=EVIL).click()
            desk.page.get_by_role("heading", name=EVIL, level=2).wait_for()
            desk.page.locator(".figures").wait_for()
            assert desk.page.title().startswith(EVIL)
            desk.page.get_by_role("link", name="Images", exact=True).click()
            assert EVIL in desk.page.get_by_label("Category", exact=True).inner_text()
            assert desk.page.locator("img").count() == 0


def test_an_export_is_asked_for_followed_and_downloaded(desk: Desk) -> None:
    desk.open("Exports")
    desk.page.get_by_role("button", name="Export…").click()
    dialog = desk.page.get_by_role("dialog", name="Export the current masks?")
    dialog.get_by_role("button", name="Cancel").click()
    dialog.wait_for(state="hidden")
    assert requests_of(desk.gateway, "export") == []
    desk.page.get_by_role("button", name="Export…").click()
    dialog.get_by_label("Only these categories").fill("blob\n bird \n")
    dialog.get_by_label("Masks that the annotator flagged as unsure").select_option("are left out")
    dialog.get_by_label("Lowest score").fill("0.7")
    dialog.get_by_role("button", name="Export", exact=True).click()
    dialog.wait_for(state="hidden")
    [chosen] = requests_of(desk.gateway, "export")
    filters = {name: chosen.payload.get(name) for name in ("categories", "sure", "min_score")}
    assert filters == {"categories": ["blob", "bird"], "sure": True, "min_score": 0.7}
    with desk.gateway.http() as http:
        http.post(f"/api/requests/{chosen.id}/cancel")
    desk.page.get_by_text("The export was cancelled.").wait_for()
    desk.page.get_by_role("button", name="Export…").click()
    dialog.get_by_label("Parquet, with images and clicks").uncheck()
    dialog.get_by_role("button", name="Export", exact=True).click()
    desk.page.get_by_text("An export was asked for.").wait_for()
    desk.wait(lambda: len(requests_of(desk.gateway, "export")) == 2)
    request = requests_of(desk.gateway, "export")[0]
    assert request.payload == {"formats": ["coco"], "images": "embedded", "val": 0, "test": 0}
    jobs = desk.page.get_by_role("region", name="Running jobs")
    jobs.get_by_text("waits for the runner").wait_for()
    database = desk.gateway.services.database
    with database.begin() as conn:
        claim_request(conn, "runner", request_id=request.id)
        heartbeat(conn, request.id, "runner", {"step": "export", "images": 1, "of": 4})
    jobs.get_by_text("export 1 of 4").wait_for()
    assert jobs.get_by_role("progressbar").evaluate("bar => bar.value / bar.max") == 0.25
    to = finish_export(desk.gateway, request.id)
    with desk.page.expect_download() as download:
        desk.page.get_by_role("link", name="coco/instances.json").click()
    assert Path(download.value.path()).read_bytes() == Path(to, "coco/instances.json").read_bytes()
    assert jobs.is_hidden()
    with desk.page.expect_download() as download:
        desk.page.get_by_role("link", name="Download all").click()
    assert download.value.suggested_filename == "snapshot-1.tar"


def test_while_the_server_does_not_answer_the_page_says_so_and_tries_again(desk: Desk) -> None:
    desk.open()
    desk.wait_plots()
    desk.page.route("**/api/requests?*", lambda route: route.abort())
    desk.page.get_by_text("The server does not answer. Trying again.").wait_for()
    desk.page.unroute("**/api/requests?*")
    desk.page.get_by_text("The server does not answer. Trying again.").wait_for(state="hidden")
    desk.errors.clear()  # the browser's own, of what was cut off


def test_a_job_is_cancelled_after_a_question(desk: Desk) -> None:
    desk.open()
    desk.page.get_by_role("button", name="Precompute…").click()
    desk.page.get_by_role("dialog").get_by_role("button", name="Precompute").click()
    cancel = desk.page.get_by_role("button", name="Cancel the precompute")
    cancel.click()
    dialog = desk.page.get_by_role("dialog", name="Cancel this precompute?")
    desk.page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert requests_of(desk.gateway, "precompute")[0].state == "queued"
    cancel.click()
    dialog.get_by_role("button", name="Cancel the job").click()
    cancel.wait_for(state="detached")
    assert requests_of(desk.gateway, "precompute")[0].state == "cancelled"
    desk.page.locator("#said", has_text="The precompute was cancelled.").wait_for()
    assert desk.page.evaluate("document.activeElement.id") == "view"


def test_a_job_that_fails_at_once_is_told_with_its_reason_and_can_be_tried_again(desk: Desk) -> None:
    def fail(route: Any) -> None:
        answer = route.fetch()
        with desk.gateway.services.database.begin() as conn:
            claim_request(conn, "runner", request_id=answer.json()["id"])
            finish_request(conn, answer.json()["id"], "runner", "failed", {"code": "out_of_space"}, "The disk is full.")
        route.fulfill(response=answer)

    desk.open()
    desk.page.route("**/requests", fail)
    desk.page.get_by_role("button", name="Export…").click()
    desk.page.get_by_role("dialog").get_by_role("button", name="Export", exact=True).click()
    desk.page.locator("#said", has_text="The export failed: The disk is full.").wait_for()
    desk.page.unroute("**/requests")
    desk.page.get_by_role("link", name="Jobs").click()
    desk.page.get_by_role("button", name="Try the export again").first.click()
    desk.page.get_by_role("dialog", name="Try the export again?").get_by_role("button", name="Try again").click()
    desk.page.locator("#said", has_text="The export was asked for again.").wait_for()
    again, first = requests_of(desk.gateway, "export")[:2]
    assert again.state == "queued" and first.state == "failed" and again.payload == first.payload
    with desk.gateway.http() as http:
        http.post(f"/api/requests/{again.id}/cancel")


def test_a_refusal_is_shown_in_the_dialog_and_can_be_answered_again(desk: Desk) -> None:
    desk.open()
    for _ in range(2):
        desk.page.get_by_role("button", name="Retrain…").click()
        dialog = desk.page.get_by_role("dialog", name="Retrain on the accepted masks?")
        dialog.get_by_label("Kind of adapter").select_option("lora")
        dialog.get_by_role("button", name="Retrain", exact=True).click()
        desk.page.locator("#ask:not([open]), #ask-error:not(:empty)").first.wait_for(state="attached")
    assert "already" in dialog.get_by_role("alert").inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    desk.errors.remove(next(error for error in desk.errors if "409" in error))
    [request] = requests_of(desk.gateway, "retrain")
    assert request.payload == {"adapter": "lora", "promote": "auto"}
    with desk.gateway.http() as http:
        http.post(f"/api/requests/{request.id}/cancel")


@pytest.mark.parametrize(
    ("name", "answers", "kind", "payload"),
    [
        ("Read images", {}, "ingest", {}),
        (
            "Import masks",
            {"Where from": "{workspace}/coco.json", "Format": "coco", "What for": "look"},
            "import",
            {"source": "{workspace}/coco.json", "format": "coco", "look": True, "trusted": False},
        ),
        (
            "Prelabel",
            {"Clicks per side of the grid": "4", "At most so many images": "10"},
            "prelabel",
            {"grid": 4, "min_score": 0.5, "limit": 10},
        ),
        ("Propose look-alikes", {}, "propose", {}),
        ("Order", {"By": "diversity"}, "order", {"by": "diversity"}),
    ],
)
def test_other_jobs_are_asked_for(
    desk: Desk, name: str, answers: dict[str, str], kind: str, payload: dict[str, Any]
) -> None:
    workspace = str(desk.gateway.services.settings.workspace)
    desk.open()
    desk.page.locator("#do-more").click()
    desk.page.get_by_role("button", name=name).click()
    dialog = desk.page.get_by_role("dialog")
    for label_, answer in answers.items():
        field = dialog.get_by_label(label_, exact=True)
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(answer)
        else:
            field.fill(answer.format(workspace=workspace))
    dialog.locator("#ask-go").click()
    dialog.wait_for(state="hidden")
    [request] = requests_of(desk.gateway, kind)
    wanted = {key: value.format(workspace=workspace) if key == "source" else value for key, value in payload.items()}
    assert request.payload == wanted
    with desk.gateway.http() as http:
        http.post(f"/api/requests/{request.id}/cancel")


def test_an_answer_that_comes_after_cancel_leaves_the_next_dialog_open_and_is_told(desk: Desk) -> None:
    desk.open()
    held: list[Any] = []
    desk.page.route("**/requests", lambda route: held.append(route))
    ask = desk.page.get_by_role("dialog")
    desk.page.get_by_role("button", name="Precompute…").click()
    ask.get_by_role("button", name="Precompute").click()
    desk.wait(lambda: held)
    ask.get_by_role("button", name="Cancel").click()
    desk.page.get_by_role("button", name="Export…").click()
    held[0].continue_()
    desk.page.locator("#said", has_text="Precompute was asked for").wait_for()
    assert ask.get_by_role("button", name="Export").is_visible()
    ask.get_by_role("button", name="Cancel").click()
    (job,) = [one for one in requests_of(desk.gateway, "precompute") if one.state == "queued"]
    with desk.gateway.http() as http:
        http.post(f"/api/requests/{job.id}/cancel")


def test_more_stays_open_when_the_page_is_drawn_anew(desk: Desk) -> None:
    desk.open()
    # Its toggle event comes some time after the click, maybe after the next drawing: nothing may hang on it.
    desk.page.evaluate("addEventListener('toggle', (event) => event.stopImmediatePropagation(), true)")
    desk.page.locator("#do-more").click()
    desk.page.get_by_role("link", name="Jobs", exact=True).click()
    desk.page.get_by_role("link", name="Jobs", exact=True).and_(desk.page.locator("[aria-current=page]")).wait_for()
    desk.page.get_by_role("button", name="Order…").wait_for()


def test_a_campaign_is_created_from_the_page(desk: Desk, tmp_path: Path) -> None:
    desk.begin()
    images = desk.gateway.services.settings.workspace
    desk.page.get_by_role("button", name="New campaign").click()
    dialog = desk.page.get_by_role("dialog", name="New campaign")
    dialog.get_by_label("Name").fill("second")
    dialog.get_by_label("Images").fill(str(tmp_path))
    dialog.get_by_label("Labels").fill("cat\n dog \n")
    dialog.get_by_role("button", name="Create campaign").click()
    dialog.get_by_text("is not below a configured root").wait_for()
    desk.errors.remove(next(error for error in desk.errors if "403" in error))
    dialog.get_by_label("Images").fill(str(images))
    dialog.get_by_role("button", name="Create campaign").click()
    desk.page.get_by_text("The campaign is being created.").wait_for()
    jobs = desk.page.get_by_role("region", name="Running jobs")
    jobs.get_by_text("second").wait_for()
    with desk.gateway.services.database.connect() as conn:
        [request] = [one for one in list_requests(conn) if one.kind == "campaign"]
    made = request.payload["create"]
    assert (made["name"], made["labels"], made["settings"]["holdout_fraction"]) == ("second", ["cat", "dog"], 0.2)
    with desk.gateway.http() as http:
        http.post(f"/api/requests/{request.id}/cancel")


def test_images_are_filtered_and_paged(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.open("Images")
    tiles = desk.drawn_tiles(1, 2, 3)
    pixel = "([canvas, x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"
    canvas = tiles.first.locator("canvas")
    tinted = canvas.evaluate(f"canvas => ({pixel})([canvas, 80, 45])")
    desk.page.get_by_label("Show masks").uncheck()
    assert canvas.evaluate(f"canvas => ({pixel})([canvas, 80, 45])") != tinted
    desk.page.get_by_label("Category", exact=True).select_option("blob")
    desk.drawn_tiles(2)
    desk.page.get_by_text("1–1 of 1 image", exact=True).wait_for()
    monkeypatch.setattr("pipeline.storage.browsing.COUNTED", 1)
    desk.page.get_by_label("Category", exact=True).select_option("any category")
    desk.page.get_by_label("Annotator", exact=True).select_option("ada")
    desk.drawn_tiles(1, 2)
    desk.page.get_by_text("1–2 of more than 1 image", exact=True).wait_for()
    desk.page.get_by_label("Annotator", exact=True).select_option("bob")
    desk.drawn_tiles(3)
    desk.page.reload()
    desk.drawn_tiles(3)
    desk.page.get_by_label("State", exact=True).select_option("any state")
    desk.page.get_by_label("Annotator", exact=True).select_option("anybody")
    desk.page.get_by_label("Objects", exact=True).select_option("some unsure")
    desk.drawn_tiles(2)
    desk.page.get_by_label("Objects", exact=True).select_option("any")
    desk.page.get_by_label("Annotator", exact=True).select_option("bob")
    desk.page.get_by_label("State", exact=True).select_option("skipped")
    desk.drawn_tiles(4).get_by_text("<b>too dark</b>", exact=True).wait_for()
    desk.page.get_by_role("button", name="skipped: <b>too dark</b>").click()
    desk.page.get_by_text("Skipped: <b>too dark</b>").wait_for()
    desk.page.get_by_role("button", name="Close").click()
    desk.page.get_by_label("Annotator", exact=True).select_option("anybody")
    desk.page.get_by_label("State", exact=True).select_option("any state")
    desk.drawn_tiles(*range(1, 25))
    desk.page.get_by_role("button", name="Next", exact=True).click()
    desk.drawn_tiles(*range(25, 31))
    desk.page.get_by_text("25–30 of 30 images").wait_for()
    assert desk.page.get_by_role("button", name="Next", exact=True).is_disabled()
    desk.page.get_by_role("button", name="Previous").click()
    desk.drawn_tiles(*range(1, 25))


def test_a_finished_object_is_opened_for_correction_in_the_labeling_page(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=2) as gateway, desk_at(browser, gateway) as desk:
        label(gateway, "ada", 2)
        desk.open("Images")
        desk.drawn_tiles(1).press("Enter")
        dialog = desk.page.get_by_role("dialog")
        desk.page.locator("#picture canvas[data-drawn]").wait_for()
        assert dialog.get_by_role("button", name="Add objects").is_visible()
        desk.page.locator("#picture canvas").click()  # on the disc in the middle
        dialog.get_by_role("checkbox", name="1 blob", checked=True).wait_for()
        dialog.get_by_role("button", name="Correct 1 object").click()
        desk.page.locator("#where", has_text="Image 1 ").wait_for()
        desk.page.get_by_role("button", name="1 blob", pressed=True).wait_for()
        with gateway.services.database.connect() as conn:
            session = list_sessions(conn, CAMPAIGN, state="open")[0]
            kinds = [event.kind for event in session_events(conn, session.id)]
        assert kinds == ["open", "category"]

        def accepted() -> bool:
            desk.page.keyboard.press("Enter")  # does nothing before the mask is there, nor after it was accepted
            return bool(desk.page.locator("#objects").get_by_text("accepted").is_visible())

        desk.wait(accepted)
        desk.page.get_by_role("button", name="Submit image").click()
        desk.page.locator("#where", has_text="Image 2 ").wait_for()
        with gateway.http("eve") as http:
            image = http.get(f"/api/campaigns/{CAMPAIGN}/browse").json()["results"][0]
        assert [(mask["annotator"], mask["category_number"]) for mask in image["masks"]] == [("eve", 2)]


def test_adapters_show_the_gates_decisions_and_can_be_rolled_back(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=2) as gateway, desk_at(browser, gateway) as desk:
        figures = {"live_noc": 4.0, "candidate_noc": 3.0, "improvement": {"mean": 1.0, "low": 0.5, "high": 1.5}}
        with gateway.services.database.begin() as conn:
            mine = get_campaign(conn, CAMPAIGN)
            facts: dict[str, Any] = {"campaign_id": CAMPAIGN, "kind": "head", "uri": "x", "parent_digest": None}
            facts |= {"model_digest": mine.model_digest, "model_key": mine.model_key, "snapshot_id": None, "seed": 0}
            for digest, promotes, reasons in (("a" * 64, True, []), ("b" * 64, False, [f"worse {EVIL}"])):
                register_adapter(conn, digest=digest, **facts)
                gate = {"promote": promotes, "reasons": reasons, "figures": figures}
                set_gate(conn, digest, "candidate" if promotes else "rejected", gate)
            promote(conn, CAMPAIGN, "a" * 64, 0)
        desk.open("Adapters")
        desk.page.get_by_role("img", name=re.compile(r"adapter 1 1 \(0.5 to 1.5\)")).wait_for()
        row = desk.page.get_by_role("row", name=re.compile("1 · head"))
        assert "live" in row.inner_text() and "4.00 → 3.00" in row.inner_text()
        assert f"worse {EVIL}" in desk.page.get_by_role("row", name=re.compile("2 · head")).inner_text()
        desk.page.get_by_role("button", name="Roll back…").click()
        desk.page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        desk.page.get_by_text("Rolled back.").wait_for()
        with gateway.services.database.connect() as conn:
            assert (get_campaign(conn, CAMPAIGN).live_adapter, get_adapter(conn, "a" * 64).live) == (None, False)
        desk.wait(desk.page.get_by_role("button", name="Roll back…").is_disabled)


def test_a_gateway_that_demands_tokens_is_signed_in_to(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=2, host="0.0.0.0") as gateway, desk_at(browser, gateway) as desk:
        with gateway.services.database.begin() as conn:
            _, token = create_token(conn, "boss", ["admin"])
        desk.page.goto(f"{gateway.url}/campaigns")
        name = desk.page.get_by_role("textbox", name="Your name")
        name.fill("boss")
        desk.page.get_by_role("button", name="Go on", exact=True).click()
        desk.page.get_by_text("Send a token").wait_for()
        desk.page.get_by_role("textbox", name="Token").fill(token)
        desk.page.get_by_role("button", name="Go on", exact=True).click()
        desk.page.get_by_role("link", name="discs").click()
        desk.page.get_by_role("link", name="Images", exact=True).click()
        desk.page.get_by_label("State", exact=True).select_option("any state")
        desk.drawn_tiles(1, 2)
        request_id = str(uuid4())
        with gateway.services.database.begin() as conn:
            insert_request(conn, request_id, "export", CAMPAIGN, {})
            claim_request(conn, "runner", request_id=request_id)
        to = finish_export(gateway, request_id)
        desk.page.get_by_role("link", name="Exports", exact=True).click()
        with desk.page.expect_download() as download:  # a plain link could not carry the token
            desk.page.get_by_role("button", name="coco/instances.json").click()
        assert Path(download.value.path()).read_bytes() == Path(to, "coco/instances.json").read_bytes()
        assert {"401" in error for error in desk.errors} == {True}
        desk.errors.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_tablet_and_is_used_by_keyboard(browser: Any, gateway: Gateway, scheme: str) -> None:
    with desk_at(browser, gateway, color_scheme=scheme) as desk:
        desk.page.set_viewport_size({"width": 768, "height": 1024})
        desk.begin()
        link = desk.page.get_by_role("link", name="discs")
        link.focus()
        desk.page.keyboard.press("Enter")
        desk.wait_plots()
        assert desk.page.evaluate("document.activeElement.id") == "view", "the focus begins at the new page"
        for tab in ("Images", "Adapters", "Exports", "Jobs", "Overview"):
            desk.page.get_by_role("link", name=tab, exact=True).press("Enter")
            desk.page.locator("[aria-current=page]", has_text=tab).wait_for()
            assert desk.page.evaluate("document.activeElement.textContent") == tab
            assert desk.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        unnamed = desk.page.evaluate(
            "[...document.querySelectorAll('button, a, input, select')].filter((e) => e.checkVisibility() && "
            "!(e.ariaLabel || e.textContent.trim() || e.labels?.length)).length"
        )
        assert unnamed == 0
