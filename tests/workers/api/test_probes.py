"""Attacks that are tried against every route: guessed tokens, foreign pages, other people's ids, paths, SQL, markup."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import func, select, text
from websockets.exceptions import ConnectionClosed

from pipeline.storage.annotators import create_token
from pipeline.storage.campaigns import add_categories, create_campaign
from pipeline.storage.images import add_image
from schemas.campaigns import CampaignSettings
from schemas.predictions import ImageRef
from schemas.tables import Annotator, Image
from tests.workers.api.gateway import ADMIN_TOKEN, CAMPAIGN, LABELS, Gateway, Work, code_of, gateway_in
from workers.api import auth
from workers.api.app import STATIC

pytestmark = pytest.mark.timeout(60)
OTHER = "22222222-2222-4222-8222-222222222222"
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """On loopback; a second campaign has an image of its own, and a name and a label that are markup."""
    with gateway_in(tmp_path_factory.mktemp("probes"), images=12) as running:
        with running.services.database.begin() as conn:
            [image] = [ImageRef(**row._mapping) for row in conn.execute(_REFS.limit(1))]
            create_campaign(
                conn,
                campaign_id=OTHER,
                name=MARKUP,
                source_url="/nowhere",
                model_id="toy-color",
                model_digest="0" * 64,
                model_key="k",
                labels=LABELS,
                settings=CampaignSettings(holdout_fraction=0.0),
            )
            add_categories(conn, OTHER, [MARKUP])
            _register_elsewhere(conn, image)
        yield running


_REFS = select(Image.uri, Image.sha256, Image.width, Image.height)


def _register_elsewhere(conn: Any, image: ImageRef) -> None:
    add_image(
        conn, OTHER, uri=image.uri, file_name=f"{MARKUP}.png", uri_sha256=image.sha256, version="1",
        sha256=image.sha256, phash="0" * 16, group_key="g", width=image.width, height=image.height, format="PNG",
        size_bytes=1,
    )  # fmt: skip


@pytest.fixture
def abroad(tmp_path: Path) -> Iterator[Gateway]:
    with gateway_in(tmp_path, images=2, host="0.0.0.0") as running:
        yield running


def from_address(gateway: Gateway, address: str, token: str) -> httpx.Client:
    """A client that calls from an address of this machine."""
    transport = httpx.HTTPTransport(local_address=address)
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=gateway.url, headers=headers, transport=transport, timeout=30.0)


def test_wrong_tokens_of_an_address_are_bounded(
    abroad: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auth, "_MAX_WRONG", 5)
    with abroad.services.database.begin() as conn:
        known, fresh = (create_token(conn, name, ["label"])[1] for name in ("known", "fresh"))

    def call(token: str, address: str = "127.0.0.1") -> httpx.Response:
        with from_address(abroad, address, token) as http:
            return http.get("/api/campaigns")

    assert call(known).status_code == 200
    assert [call(f"clk_wrong-{n}").status_code for n in range(6)] == [401] * 5 + [429]
    refused = call("clk_wrong")
    assert code_of(refused) == "too_many_attempts" and 0 < int(refused.headers["retry-after"]) <= 60
    assert (call(fresh).status_code, call(known).status_code, call(ADMIN_TOKEN).status_code) == (429, 200, 200)
    assert call(fresh, "127.0.0.2").status_code == 200, "another address is not held to account"
    with abroad.http(token=ADMIN_TOKEN) as http:
        work = Work(http)
    with work.socket(token="clk_wrong") as socket:
        assert json.loads(socket.recv(timeout=10))["error"]["code"] == "too_many_attempts"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)
    told = [r.getMessage() for r in caplog.records if r.name == "workers.api.auth" and r.levelno == logging.WARNING]
    assert told == ["5 wrong tokens from 127.0.0.1: no more are looked up for a while"]


PAGES = [
    "/",
    "/campaigns",
    "/campaigns.html",
    "/openapi.json",
    "/docs",
    "/static-offline-docs/swagger-ui-bundle.js",
    "/metrics",
    "/js/main.js",
    "/api/progress",
]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_closed_to_foreign_hosts_and_origins(gateway: Gateway, path: str) -> None:
    with gateway.http() as http:
        assert http.get(path).status_code == 200
        assert code_of(http.get(path, headers={"Host": "evil.example"})) == "forbidden"
        foreign = http.get(path, headers={"Origin": "http://evil.example"})
        assert (foreign.status_code, code_of(foreign)) == (403, "forbidden")
        preflight = http.options(path, headers={"Origin": "http://evil.example"})
        assert preflight.status_code == 403 and "access-control-allow-origin" not in preflight.headers


def test_no_page_runs_a_foreign_script(gateway: Gateway) -> None:
    with gateway.http() as http:
        for path in ("/", "/campaigns", "/docs"):
            names = re.findall(r'(?:src|href)="([^"]*)"', http.get(path).text)
            assert names and "//" not in "".join(names)
            for name in names:
                assert http.get(urljoin(path, name)).status_code == 200, name


TRAVERSALS = ["..%2f..%2f..%2f..%2fetc%2fpasswd", "%2e%2e", "..%5c..%5cwindows", "file:%2f%2f%2fetc%2fpasswd",
              "%00", "%ff%fe", "%0d%0aX-Evil:%201", "'%20OR%20'1'='1", "%25s%25n", "a" * 3000]  # fmt: skip


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_path_parameter_leads_anywhere(gateway: Gateway, name: str) -> None:
    with gateway.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        if "{" not in path:
            continue
        target = path.replace("{campaign}", CAMPAIGN if path.count("{") > 1 else name)
        for part in [part.strip("{}") for part in path.split("/") if part.startswith("{")]:
            target = target.replace("{" + part + "}", name)
        for method in operations:
            status, body = raw(gateway, f"{method.upper()} {target} HTTP/1.1")
            assert 400 <= status < 500, (method, target, status)
            assert b"root:" not in body and b"\r\nX-Evil" not in body


def raw(gateway: Gateway, line: str) -> tuple[int, bytes]:
    """Status and everything that was answered to a request whose path no client library rewrites."""
    host = gateway.url.removeprefix("http://")
    sent = f"{line}\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(sent.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split(b" ", 2)[1]), answer


INJECTIONS = [
    "' OR 1=1 --",
    "'; DROP TABLE events; --",
    "%",
    "_",
    '" OR ""="',
    "1) UNION SELECT * FROM tokens --",
    "\\",
]


@pytest.mark.parametrize("sql", INJECTIONS)
def test_sql_in_filters_matches_nothing(gateway: Gateway, http: httpx.Client, sql: str) -> None:
    base = f"/api/campaigns/{CAMPAIGN}"
    assert http.get(f"{base}/browse", params={"annotator": sql}).json()["count"] == 0
    for params in ({"state": sql}, {"category": sql}, {"after": sql}, {"limit": sql}, {"preview": sql}):
        assert http.get(f"{base}/browse", params=params).status_code == 422
    assert http.get("/api/requests", params={"campaign": sql}).status_code == 404
    assert code_of(http.get("/api/requests", params={"active": sql})) == "bad_input"
    claim = http.post(f"{base}/claim", json={"claim_id": str(uuid4()), "image_id": sql})
    assert code_of(claim) == "not_found"
    with gateway.services.database.connect() as conn:
        assert conn.execute(select(func.count()).select_from(Annotator)).scalar_one() >= 1
        assert conn.execute(text("SELECT count(*) FROM sqlite_master WHERE name = 'events'")).scalar_one() == 1


def test_ids_of_another_campaign_are_not_found(gateway: Gateway, http: httpx.Client) -> None:
    theirs = http.get(f"/api/campaigns/{OTHER}/images").json()["results"][0]["id"]
    mine = Work(http)
    instance = mine.opened()
    shown = mine.click(instance)["mask"]
    mine.do("accept", instance, seq=shown["seq"], mask_sha256=shown["mask_sha256"], category=1)
    mine.do("submit")
    base = f"/api/campaigns/{CAMPAIGN}"
    [mask] = http.get(f"{base}/browse/{mine.claim['image']['id']}").json()["masks"]
    assert code_of(http.get(f"{base}/browse/{theirs}")) == "not_found"
    assert code_of(http.post(f"{base}/claim", json={"claim_id": str(uuid4()), "image_id": theirs})) == "not_found"
    elsewhere = Work(http)
    answer = elsewhere.post(elsewhere.event("open", str(uuid4()), mask_id=mask["id"]))
    assert code_of(answer) in ("not_found", "bad_input"), "the mask is of another image"
    assert code_of(http.get(f"{elsewhere.path}/instances/{instance}/mask")) in ("not_found", "bad_input")
    assert http.get(f"{elsewhere.path}/standing").json()["results"] == []


def test_markup_in_names_stays_data(gateway: Gateway, http: httpx.Client) -> None:
    for path in ("/api/campaigns", f"/api/campaigns/{OTHER}", f"/api/campaigns/{OTHER}/images",
                 f"/api/campaigns/{OTHER}/browse", f"/api/campaigns/{OTHER}/statistics"):  # fmt: skip
        answer = http.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert http.get("/api/campaigns/" + MARKUP).json()["name"] == MARKUP
    refused = http.get(f"/api/requests/{MARKUP}/files/{MARKUP}")
    assert refused.headers["content-type"] == "application/json" and refused.status_code == 404


def test_pages_write_no_markup_and_run_no_foreign_script() -> None:
    scripts = [path.read_text() for path in STATIC.rglob("*.js")]
    assert len(scripts) > 5
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert not [text for text in scripts if forbidden in text], forbidden
    for page in STATIC.glob("*.html"):
        assert "Content-Security-Policy" in page.read_text(), page


def test_credentials_in_a_url_are_refused_and_in_no_log(
    gateway: Gateway, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    packages = ("workers", "pipeline", "uvicorn", "schemas")
    for name in (None, *packages):  # also where a command's own level was set before
        caplog.set_level(logging.DEBUG, name)
    url, requests = "s3://AKIAKEY:hush-hush@bucket/x", f"/api/campaigns/{CAMPAIGN}/requests"
    new = {"id": str(uuid4()), "name": "secret", "images": url}
    with gateway.http(token=ADMIN_TOKEN) as trusted:
        for client in (http, trusted):
            answers = [
                client.post(requests, json={"id": str(uuid4()), "kind": kind, "payload": {name: url}})
                for kind, name in (("import", "source"), ("ingest", "images"), ("export", "to"))
            ]
            answers.append(client.post("/api/campaigns", json=new))
            assert {(answer.status_code, code_of(answer)) for answer in answers} == {(422, "bad_input")}
            assert not [answer for answer in answers if "hush" in answer.text]
    ours = [r for r in caplog.records if r.name.startswith(packages)]
    assert ours and not [r for r in ours if "hush" in r.getMessage()]
    assert http.get("/api/requests").json()["results"] == []
