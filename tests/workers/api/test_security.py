"""Who may do what: hosts, origins, tokens, scopes, other people's sessions, places outside the roots."""

import json
import logging
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import update
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from pipeline.storage.annotators import create_token, pseudonyms, purge_annotator, require_tokens, revoke_token
from pipeline.storage.database import open_database
from schemas.errors import BadInputError
from schemas.tables import Token
from tests.workers.api.gateway import ADMIN_TOKEN, CAMPAIGN, Gateway, Work, code_of, gateway_in
from workers.api import __main__ as entry
from workers.api import auth

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """On loopback: no token is needed."""
    with gateway_in(tmp_path_factory.mktemp("loopback"), images=12) as running:
        yield running


@pytest.fixture(scope="module")
def abroad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Listens on all interfaces: every caller needs a token."""
    with gateway_in(tmp_path_factory.mktemp("abroad"), images=12, host="0.0.0.0") as running:
        yield running


def token_for(gateway: Gateway, name: str, *scopes: str) -> tuple[str, str]:
    """A token's id and the token."""
    with gateway.services.database.begin() as conn:
        return create_token(conn, name, scopes)


def client(gateway: Gateway, token: str | None, **headers: str) -> httpx.Client:
    """An HTTP client without an annotator's name."""
    given = {**headers, **({"Authorization": f"Bearer {token}"} if token else {})}
    return httpx.Client(base_url=gateway.url, headers=given, timeout=30.0, trust_env=False)


def raw(gateway: Gateway, *lines: str) -> int:
    """The status of a request written by hand, for headers that no client library sends."""
    address = ("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(("\r\n".join([*lines, "Connection: close", "", ""])).encode("latin-1"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return int(answer.split(b" ", 2)[1])


# Host and Origin.


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "evil.example:8700",
        "",
        "[::2]",
        "127.0.0.1:x",
    ],
)
def test_foreign_host_is_refused_over_http(gateway: Gateway, host: str) -> None:
    assert raw(gateway, "GET /healthz HTTP/1.1", f"Host: {host}") in (400, 421)
    if host:
        with gateway.http(Host=host) as http:
            answer = http.get("/api/campaigns")
        assert (answer.status_code, code_of(answer)) == (421, "forbidden")


def test_own_hosts_are_answered(gateway: Gateway) -> None:
    for host in ("127.0.0.1", "localhost:1234", "LOCALHOST.", "[::1]:8700"):
        assert raw(gateway, "GET /healthz HTTP/1.1", f"Host: {host}") == 200


def test_missing_or_doubled_host_is_refused(gateway: Gateway) -> None:
    assert raw(gateway, "GET /healthz HTTP/1.0") in (400, 421)
    assert raw(gateway, "GET /healthz HTTP/1.1", "Host: localhost", "Host: evil.example") in (400, 421)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://", "http://[::1", "x" * 300],
)
def test_foreign_origin_is_refused_over_http_and_on_the_upgrade(gateway: Gateway, work: Work, origin: str) -> None:
    with gateway.http(Origin=origin) as http:
        for answer in (
            http.get("/api/campaigns"),
            http.post(f"/api/campaigns/{CAMPAIGN}/claim", json={"claim_id": str(uuid4())}),
            http.get("/"),
        ):
            assert (answer.status_code, code_of(answer)) == (403, "forbidden")
            assert answer.headers["x-request-id"]
    with pytest.raises(InvalidStatus) as refused, ws(gateway, work.session_id, {"Origin": origin}):
        pass
    assert refused.value.response.status_code == 403


def test_own_origin_is_let_in_and_one_of_two_is_not_enough(gateway: Gateway, work: Work) -> None:
    with gateway.http(Origin=gateway.url) as http:
        assert http.get("/api/campaigns").status_code == 200
    with ws(gateway, work.session_id, {"Origin": gateway.url}):
        pass
    host = gateway.url.removeprefix("http://")
    lines = ("GET /api/campaigns HTTP/1.1", f"Host: {host}", f"Origin: {gateway.url}")
    assert raw(gateway, *lines) == 200
    assert raw(gateway, *lines, "Origin: http://evil.example") == 403


def test_foreign_host_is_refused_on_the_upgrade(gateway: Gateway, work: Work) -> None:
    lines = (
        f"GET {work.path}/ws HTTP/1.1",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    assert raw(gateway, *lines, "Host: evil.example") == 421


def test_answers_forbid_framing_and_sniffing(http: httpx.Client) -> None:
    headers = http.get("/healthz").headers
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


# Tokens.


def ws(gateway: Gateway, session_id: str, headers: dict[str, str] | None = None, query: str = "") -> Any:
    """A WebSocket that has not said hello."""
    url = gateway.url.replace("http", "ws", 1) + f"/api/sessions/{session_id}/ws{query}"
    return connect(url, additional_headers=headers, compression=None, proxy=None)


def refused_hello(socket: Any, **hello: Any) -> tuple[str, int]:
    """The error code and the close code after a hello that must fail."""
    socket.send(json.dumps({"type": "hello", **hello}))
    error = json.loads(socket.recv(timeout=10))
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=10)
    assert error["type"] == "error" and closed.value.rcvd is not None
    return error["error"]["code"], closed.value.rcvd.code


ROUTES = [
    ("GET", "/api/campaigns"),
    ("POST", "/api/campaigns"),
    ("GET", f"/api/campaigns/{CAMPAIGN}"),
    ("GET", f"/api/campaigns/{CAMPAIGN}/status"),
    ("POST", f"/api/campaigns/{CAMPAIGN}/pause"),
    ("POST", f"/api/campaigns/{CAMPAIGN}/resume"),
    ("GET", f"/api/campaigns/{CAMPAIGN}/images"),
    ("GET", f"/api/campaigns/{CAMPAIGN}/snapshots"),
    ("GET", f"/api/campaigns/{CAMPAIGN}/adapters"),
    ("POST", f"/api/campaigns/{CAMPAIGN}/adapters/0/promote"),
    ("POST", f"/api/campaigns/{CAMPAIGN}/rollback"),
    ("POST", f"/api/campaigns/{CAMPAIGN}/claim"),
    ("POST", f"/api/campaigns/{CAMPAIGN}/requests"),
    ("GET", "/api/requests"),
    ("GET", "/api/requests/0"),
    ("POST", "/api/requests/0/cancel"),
    ("GET", "/api/requests/0/archive"),
    ("GET", "/api/requests/0/files/a"),
    ("GET", "/api/progress"),
    ("GET", f"/api/campaigns/{CAMPAIGN}/statistics"),
    ("GET", f"/api/campaigns/{CAMPAIGN}/browse"),
    ("GET", f"/api/campaigns/{CAMPAIGN}/browse/0"),
    ("GET", f"/api/campaigns/{CAMPAIGN}/exports"),
    ("GET", "/api/images/0/content"),
    ("GET", "/api/images/0/thumbnail"),
    ("GET", "/api/images/0/tiles/0/0/0"),
    ("GET", "/api/sessions"),
    ("GET", "/api/sessions/0"),
    ("POST", "/api/sessions/0/open"),
    ("GET", "/api/sessions/0/events"),
    ("POST", "/api/sessions/0/events"),
    ("GET", "/api/sessions/0/instances/0/mask"),
    ("GET", "/api/sessions/0/masks"),
    ("GET", "/api/sessions/0/standing"),
]


def test_every_route_of_the_api_demands_a_token_abroad(abroad: Gateway) -> None:
    with abroad.http() as http:
        listed = http.get("/openapi.json").json()["paths"]
    concrete = {(method, path.count("/")) for method, path in ROUTES}
    known = {(method.upper(), path.count("/")) for path in listed if path.startswith("/api") for method in listed[path]}
    assert known == concrete and sum(len(listed[path]) for path in listed if path.startswith("/api")) == len(ROUTES)
    with client(abroad, None, **{"X-Annotator": "ann"}) as nobody, client(abroad, "clk_foreign") as foreign:
        for http in (nobody, foreign):
            for method, path in ROUTES:
                answer = http.request(method, path, json={} if method == "POST" else None)
                assert (answer.status_code, code_of(answer)) == (401, "unauthorized"), (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"


def test_sockets_demand_a_token_abroad(abroad: Gateway) -> None:
    for query in ("", "?token=" + ADMIN_TOKEN):
        with ws(abroad, str(uuid4()), query=query) as socket:
            assert refused_hello(socket) == ("unauthorized", 4401)
    with ws(abroad, str(uuid4())) as socket:
        assert refused_hello(socket, token="clk_foreign") == ("unauthorized", 4401)


def test_token_in_the_url_or_in_a_cookie_counts_for_nothing(abroad: Gateway) -> None:
    _, token = token_for(abroad, "eve", "admin")
    with client(abroad, None, Cookie=f"token={token}; Authorization=Bearer {token}") as http:
        for name in ("token", "access_token", "authorization"):
            answer = http.get("/api/campaigns", params={name: token})
            assert (answer.status_code, code_of(answer)) == (401, "unauthorized")
    with client(abroad, token) as http:
        assert http.get("/api/campaigns").status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "clk_x", "Bearer a b", "Bearer \xff"])
def test_odd_authorization_headers_are_refused_even_where_no_token_is_needed(gateway: Gateway, header: str) -> None:
    host = gateway.url.removeprefix("http://")
    assert raw(gateway, "GET /api/campaigns HTTP/1.1", f"Host: {host}", f"Authorization: {header}") == 401


def test_expired_and_revoked_tokens_are_refused(abroad: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    expired_id, expired = token_for(abroad, "late", "label")
    revoked_id, revoked = token_for(abroad, "gone", "label")
    with abroad.services.database.begin() as conn:
        past = datetime.now(UTC) - timedelta(seconds=1)
        conn.execute(update(Token).where(Token.id == expired_id).values(expires_at=past))
        revoke_token(conn, revoked_id)
    for token in (expired, revoked):
        with client(abroad, token) as http:
            assert code_of(http.get("/api/campaigns")) == "unauthorized"
    monkeypatch.setattr(auth, "_CACHE_S", -1.0)
    token_id, token = token_for(abroad, "leaver", "label")
    with client(abroad, token) as http:
        assert http.get("/api/campaigns").status_code == 200
        with abroad.services.database.begin() as conn:
            revoke_token(conn, token_id)
        assert http.get("/api/campaigns").status_code == 401


def test_revoking_a_token_ends_its_open_socket(abroad: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_CACHE_S", -1.0)
    token_id, token = token_for(abroad, "dismissed", "label")
    with client(abroad, token) as http:
        work = Work(http)
        with ws(abroad, work.session_id) as socket:
            socket.send(json.dumps({"type": "hello", "token": token}))
            assert json.loads(socket.recv(timeout=10))["type"] == "welcome"
            with abroad.services.database.begin() as conn:
                revoke_token(conn, token_id)
            socket.send(json.dumps({"type": "event", "event": work.event("open", str(uuid4()))}))
            assert json.loads(socket.recv(timeout=10))["error"]["code"] == "unauthorized"
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
    with client(abroad, ADMIN_TOKEN) as admin:
        assert admin.get(work.path).json()["last_seq"] == 0


def test_the_supervisors_token_makes_no_annotator_that_nobody_named(
    abroad: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_CACHE_S", -1.0)
    with client(abroad, ADMIN_TOKEN, **{"X-Annotator": "robot"}) as http:
        work = Work(http)
        with ws(abroad, work.session_id) as socket:
            socket.send(json.dumps({"type": "hello", "token": ADMIN_TOKEN, "annotator": "robot"}))
            assert json.loads(socket.recv(timeout=10))["type"] == "welcome"
            with abroad.services.database.begin() as conn:
                known = set(pseudonyms(conn))
            socket.send(json.dumps({"type": "event", "event": work.event("open", str(uuid4())), "mask": "none"}))
            assert json.loads(socket.recv(timeout=10))["type"] == "ack"
    with abroad.services.database.begin() as conn:
        assert set(pseudonyms(conn)) == known


def new_request(kind: str, **payload: Any) -> dict[str, Any]:
    return {"id": str(uuid4()), "kind": kind, "payload": payload}


def test_each_scope_opens_its_own_routes_only(abroad: Gateway) -> None:
    base = f"/api/campaigns/{CAMPAIGN}"
    new = {"id": str(uuid4()), "name": "more", "images": str(abroad.services.settings.workspace)}
    needs = [
        ("label", f"{base}/claim", {"claim_id": str(uuid4())}),
        ("label", f"/api/sessions/{uuid4()}/open", None),
        ("label", f"/api/sessions/{uuid4()}/events", {"events": [_any_event()]}),
        ("train", f"{base}/requests", new_request("precompute")),
        ("train", f"{base}/requests", new_request("prelabel")),
        ("train", f"{base}/requests", new_request("order", by="plain")),
        ("train", f"{base}/requests", new_request("retrain")),
        ("train", f"{base}/rollback", None),
        ("train", f"{base}/adapters/0/promote", {"expected_version": 0}),
        ("export", f"{base}/requests", new_request("export")),
        ("admin", f"{base}/requests", new_request("ingest")),
        ("admin", f"{base}/requests", new_request("import", source=str(abroad.services.settings.workspace))),
        ("admin", f"{base}/requests", new_request("propose")),
        ("admin", f"{base}/requests", new_request("campaign")),
        ("admin", f"{base}/requests", new_request("import", source=str(abroad.services.settings.workspace))),
        ("admin", f"{base}/pause", None),
        ("admin", f"{base}/resume", None),
        ("admin", "/api/campaigns", new),
    ]
    for scope in ("label", "review", "train", "export", "admin"):
        with client(abroad, token_for(abroad, f"only {scope}", scope)[1]) as http:
            for needed, path, body in needs:
                answer = http.post(path, json=body)
                forbidden = answer.status_code == 403
                assert not forbidden or code_of(answer) == "forbidden"
                assert forbidden == (scope not in (needed, "admin")), (scope, needed, path, answer.text)


def _any_event() -> dict[str, Any]:
    numbers = {"seq": 1, "session_epoch": 1, "lease_no": 1}
    return {"event_id": str(uuid4()), "kind": "submit", "payload": {}, **numbers}


def test_cancelling_needs_the_scope_of_the_request(abroad: Gateway) -> None:
    with client(abroad, token_for(abroad, "exporter", "export")[1]) as http:
        made = http.post(f"/api/campaigns/{CAMPAIGN}/requests", json=new_request("export")).json()
    with client(abroad, token_for(abroad, "labeler", "label")[1]) as http:
        assert code_of(http.post(f"/api/requests/{made['id']}/cancel")) == "forbidden"
        assert http.get(f"/api/requests/{made['id']}").json()["cancel"] is False


def test_work_after_a_purge_is_not_the_purged_annotators(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the gateway was started again, it went under the pseudonym."""
    monkeypatch.setattr(auth, "_CACHE_S", -1.0)
    with gateway.http("leaver") as http:
        work = Work(http)
        before = work.state()["annotator_id"]
        assert work.state()["annotator_id"] == before
        work.do("release")
        with gateway.services.database.begin() as conn:
            purge_annotator(conn, "leaver")
        assert Work(http).state()["annotator_id"] != before


def test_a_token_names_its_annotator_whatever_the_header_says(abroad: Gateway) -> None:
    with client(abroad, token_for(abroad, "alice", "label")[1], **{"X-Annotator": "bob"}) as http:
        mine = Work(http)
    with abroad.services.database.connect() as conn:
        owner = conn.exec_driver_sql(
            "SELECT a.name FROM sessions s JOIN annotators a ON a.id = s.annotator_id WHERE s.id = ?",
            (mine.session_id,),
        ).scalar_one()
    assert owner == "alice"


@pytest.mark.parametrize("name", ["x" * 101, "<script>", "a/b", "a\tb"])
def test_odd_annotator_names_are_bad_input(gateway: Gateway, name: str) -> None:
    with gateway.http(name) as http:
        answer = http.get("/api/campaigns")
    assert (answer.status_code, code_of(answer)) == (422, "bad_input")


# Somebody else's session.


def test_somebody_elses_session_is_closed_on_every_route(abroad: Gateway) -> None:
    with client(abroad, token_for(abroad, "owner", "label")[1]) as http:
        work = Work(http)
        instance = work.opened()
        work.click(instance)
    event = work.event("click", instance, x=80, y=60, is_positive=False)
    mask = f"{work.path}/instances/{instance}/mask"
    stranger, reviewer = (token_for(abroad, f"other {scope}", "label", scope)[1] for scope in ("export", "review"))
    with client(abroad, stranger) as http:
        for answer in (
            http.get(work.path),
            http.get(f"{work.path}/events"),
            http.get(mask),
            http.get(f"{work.path}/masks"),
            http.get(f"{work.path}/standing"),
            http.post(f"{work.path}/open"),
            http.post(f"{work.path}/events", json={"events": [event]}),
        ):
            assert (answer.status_code, code_of(answer)) == (403, "forbidden"), answer.request.url
    with client(abroad, reviewer) as http:
        assert [http.get(path).status_code for path in (work.path, f"{work.path}/events", mask)] == [200, 200, 200]
        assert code_of(http.post(f"{work.path}/open")) == "forbidden"
        assert code_of(http.post(f"{work.path}/events", json={"events": [event]})) == "forbidden"
        assert (http.get(work.path).json()["last_seq"], http.get(work.path).json()["epoch"]) == (2, 1)
    for token in (stranger, reviewer):
        with ws(abroad, work.session_id) as socket:
            assert refused_hello(socket, token=token) == ("forbidden", 4403)
    with ws(abroad, work.session_id) as socket:
        assert refused_hello(socket, token=token_for(abroad, "trainer", "train")[1]) == ("forbidden", 4403)


def test_claim_id_of_somebody_else_is_a_conflict(gateway: Gateway) -> None:
    body = {"claim_id": str(uuid4())}
    with gateway.http("first") as first, gateway.http("second") as second:
        mine = first.post(f"/api/campaigns/{CAMPAIGN}/claim", json=body).json()
        assert first.post(f"/api/campaigns/{CAMPAIGN}/claim", json=body).json()["session_id"] == mine["session_id"]
        refused = second.post(f"/api/campaigns/{CAMPAIGN}/claim", json=body)
        assert (refused.status_code, code_of(refused)) == (409, "conflict")
        taken = second.post(
            f"/api/campaigns/{CAMPAIGN}/claim", json={"claim_id": str(uuid4()), "image_id": mine["image"]["id"]}
        )
        assert (taken.status_code, code_of(taken)) == (409, "wrong_state")


# Places.

OUTSIDE = [
    "/etc",
    "file:///etc",
    "../../../../../../etc",
    "{workspace}/../elsewhere",
    "{workspace}-beside",
    "s3://bucket/prefix",
    "http://169.254.169.254/latest",
    "memory://x",
    "simplecache::file:///etc",
    "zip://x::file:///etc/passwd",
    "filecache::{workspace}/x",
    "nowhere://x",
    "{workspace}/link",
    "",
    "a\0b",
]


@pytest.mark.parametrize("place", OUTSIDE)
def test_places_outside_the_roots_are_refused_over_http(gateway: Gateway, http: httpx.Client, place: str) -> None:
    workspace = gateway.services.settings.workspace.resolve()
    if not (workspace / "link").exists():
        (workspace / "link").symlink_to("/etc")
    url = place.replace("{workspace}", str(workspace))
    new = {"id": str(uuid4()), "name": f"from {uuid4()}", "images": str(workspace)}
    requests = f"/api/campaigns/{CAMPAIGN}/requests"
    for answer in (
        http.post(requests, json=new_request("export", to=url)),
        http.post(requests, json=new_request("ingest", images=url)),
        http.post(requests, json=new_request("import", source=url)),
        http.post(requests, json=new_request("import", source=url, trusted=True, look=True)),
        http.post("/api/campaigns", json={**new, "images": url}),
        http.post("/api/campaigns", json={**new, "annotations": url}),
        http.post(requests, json=new_request("campaign", create={**new, "images": url})),
    ):
        assert answer.status_code in (403, 422), answer.text
        assert code_of(answer) in ("forbidden", "bad_input")


@pytest.mark.parametrize("place", [["/etc"], {"a": 1}, 7, True])
def test_places_that_are_no_text_are_bad_input(http: httpx.Client, place: Any) -> None:
    for kind, name in (("export", "to"), ("ingest", "images"), ("import", "source")):
        answer = http.post(f"/api/campaigns/{CAMPAIGN}/requests", json=new_request(kind, **{name: place}))
        assert (answer.status_code, code_of(answer)) == (422, "bad_input")


def test_places_below_the_roots_are_taken_and_the_command_line_is_trusted(gateway: Gateway) -> None:
    below = str(gateway.services.settings.workspace.resolve() / "exports" / "one")
    requests = f"/api/campaigns/{CAMPAIGN}/requests"
    with gateway.http() as http:
        assert http.post(requests, json=new_request("export", to=below)).status_code == 202
        assert http.post(requests, json=new_request("import", source=below)).status_code == 202
    with gateway.http(token=ADMIN_TOKEN) as http:
        assert http.post(requests, json=new_request("export", to="/elsewhere")).status_code == 202


def test_odd_ids_in_paths_find_nothing(gateway: Gateway, work: Work) -> None:
    host = gateway.url.removeprefix("http://")
    names = (
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e%2f%2e%2e%2fapp.py",
        "....//x",
        "%00",
        "a%00b",
        "%27;DROP%20TABLE%20x",
    )
    for name in names:
        for path in (
            f"/{name}",
            f"/static/{name}",
            f"/api/campaigns/{name}",
            f"/api/campaigns/{name}/status",
            f"/api/images/{name}/content",
            f"/api/sessions/{name}",
            f"/api/requests/{name}",
            f"{work.path}/instances/{name}/mask",
        ):
            status = raw(gateway, f"GET {path} HTTP/1.1", f"Host: {host}")
            assert status in (404, 422), path


# Starting.


def test_listening_abroad_without_any_token_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORKSPACE": str(tmp_path), "HOST": "0.0.0.0", "PORT": "0"}.items():
        monkeypatch.setenv(f"CLICKLOOP_{name}", value)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert entry.main() == 2
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "clickloop token create" in capsys.readouterr().err
    database = open_database(f"sqlite:///{tmp_path / 'clickloop.db'}")
    with database.begin() as conn:
        with pytest.raises(BadInputError, match="token create"):
            require_tokens(conn, "0.0.0.0")
        token_id, _ = create_token(conn, "ann", ["label"])
        require_tokens(conn, "0.0.0.0")
        revoke_token(conn, token_id)
        with pytest.raises(BadInputError, match="token create"):
            require_tokens(conn, "0.0.0.0")
        token_id, _ = create_token(conn, "ann", ["label"], datetime.now(UTC) + timedelta(days=1))
        require_tokens(conn, "0.0.0.0")
        past = datetime.now(UTC) - timedelta(seconds=1)
        conn.execute(update(Token).where(Token.id == token_id).values(expires_at=past))
        with pytest.raises(BadInputError, match="valid token"):
            require_tokens(conn, "0.0.0.0")
    database.close()


def test_tokens_are_in_no_log(abroad: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("", "workers", "workers.api.access", "pipeline", "uvicorn"):  # Prefect may have raised their levels
        caplog.set_level(logging.DEBUG, logger=name)
    _, token = token_for(abroad, "quiet", "label")
    with client(abroad, token) as http:
        work = Work(http)
        http.get("/api/campaigns", params={"token": token})
        with ws(abroad, work.session_id) as socket:
            socket.send(json.dumps({"type": "hello", "token": token}))
            socket.recv(timeout=10)
    ours = [record for record in caplog.records if record.name.startswith(("workers", "pipeline", "uvicorn"))]
    assert any("/api/campaigns" in record.getMessage() for record in ours)
    assert not [r for r in ours if token in r.getMessage() or token in json.dumps(vars(r), default=str)]
