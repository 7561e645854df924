"""A gateway on a real port with a real database and a refiner in this process, and a client to drive it."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from sqlalchemy import Connection
from websockets.sync.client import ClientConnection, connect

from pipeline.ingest.decode import decode_image
from pipeline.storage.campaigns import create_campaign
from pipeline.storage.database import Database, open_database
from pipeline.storage.images import add_image
from schemas.campaigns import CampaignSettings
from schemas.predictions import ImageRef
from schemas.settings import Settings
from tests.workers.campaign import StoredCampaign, make_campaign
from workers.api.app import build_services, create_app
from workers.api.deps import Services
from workers.api.refining import RefineService
from workers.api.server import DrainingServer, make_server
from workers.encoder import Encoder
from workers.refiner import Refiner
from workers.router import LocalRouter

CAMPAIGN = "11111111-1111-4111-8111-111111111111"
ADMIN_TOKEN = "clk_the-supervisors-own-token"
LABELS = ("disc", "blob")


def fill(database: Database, stored: StoredCampaign, lease_s: float | None = None) -> None:
    """Register the stored images under a campaign."""
    with database.begin() as conn:
        create_campaign(
            conn,
            campaign_id=CAMPAIGN,
            name="discs",
            source_url=stored.storage_url,
            model_id="toy-color",
            model_digest=stored.pins.model_digest,
            model_key=stored.pins.model_key,
            labels=LABELS,
            settings=CampaignSettings(lease_s=lease_s, holdout_fraction=0.0),
        )
        for image in stored.images:
            register(conn, image)


def register(conn: Connection, image: ImageRef) -> str:
    """Add an image to the campaign; its id."""
    return add_image(
        conn,
        CAMPAIGN,
        uri=image.uri,
        file_name=Path(image.uri).name,
        uri_sha256=image.sha256,
        version="1",
        sha256=image.sha256,
        phash=image.sha256[:16],
        group_key=image.sha256,
        width=image.width,
        height=image.height,
        format="PNG",
        size_bytes=Path(image.uri).stat().st_size,
    ).image_id


def local_router(storage_url: str) -> LocalRouter:
    """The real model without Ray."""
    return LocalRouter(Refiner(storage_url=storage_url, engine="auto"), Encoder(storage_url=storage_url))


def settings_in(folder: Path, **values: Any) -> Settings:
    """Settings of a gateway on any free port."""
    return Settings(workspace=folder, storage_url=str(folder / "storage"), port=0, log_level="WARNING", **values)


class Gateway:
    """A running gateway."""

    def __init__(self, url: str, services: Services, server: DrainingServer) -> None:
        self.url = url
        self.services = services
        self.server = server

    def http(self, annotator: str = "ann", token: str | None = None, **headers: str) -> httpx.Client:
        """An HTTP client that acts as an annotator."""
        given = {"X-Annotator": annotator, **headers}
        if token:
            given["Authorization"] = f"Bearer {token}"
        return httpx.Client(base_url=self.url, headers=given, timeout=30.0, trust_env=False)


@contextmanager
def serving(
    settings: Settings, database: Database, service: RefineService, wait_warm: bool = True
) -> Iterator[Gateway]:
    """Run a gateway in a thread."""
    services = build_services(settings, database, service, ADMIN_TOKEN)
    server = make_server(create_app(services), services)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    give_up = time.monotonic() + 20
    while not (server.started and (services.is_warm or not wait_warm)):
        assert thread.is_alive() and time.monotonic() < give_up, "the gateway did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Gateway(f"http://127.0.0.1:{port}", services, server)
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the gateway did not drain"


@contextmanager
def gateway_in(folder: Path, images: int = 3, lease_s: float | None = None, **values: Any) -> Iterator[Gateway]:
    """A gateway with a campaign of discs, all in one folder."""
    stored = make_campaign(folder, images)
    database = open_database(f"sqlite:///{folder / 'clickloop.db'}", busy_timeout_s=2)
    fill(database, stored, lease_s)
    settings = settings_in(folder, **values)
    encoder = Encoder(storage_url=stored.storage_url)
    refiner = Refiner(storage_url=stored.storage_url, engine=settings.engine)
    try:
        with serving(settings, database, LocalRouter(refiner, encoder)) as gateway:
            yield gateway
    finally:
        encoder.close()
        database.close()


class Work:
    """One claimed session, driven over HTTP."""

    def __init__(self, http: httpx.Client, image_id: str | None = None) -> None:
        self.http = http
        claim = http.post(f"/api/campaigns/{CAMPAIGN}/claim", json={"claim_id": str(uuid4()), "image_id": image_id})
        assert claim.status_code == 200, claim.text
        self.claim = claim.json()
        assert self.claim["task"] is not None, "no task left"
        self.session_id = self.claim["session_id"]
        self.epoch, self.seq = self.claim["epoch"], self.claim["last_seq"]

    @property
    def path(self) -> str:
        """Of the session."""
        return f"/api/sessions/{self.session_id}"

    def event(
        self, kind: str, instance: str | None = None, /, *, at: int | None = None, **payload: Any
    ) -> dict[str, Any]:
        """An event as JSON, with the next seq unless told otherwise."""
        return {
            "event_id": str(uuid4()),
            "seq": self.seq + 1 if at is None else at,
            "session_epoch": self.epoch,
            "lease_no": self.claim["lease_no"],
            "instance_id": instance,
            "kind": kind,
            "payload": payload,
        }

    def post(self, *events: dict[str, Any], mask: str = "rle") -> httpx.Response:
        """Send events."""
        answer = self.http.post(f"{self.path}/events", json={"events": list(events), "mask": mask})
        if answer.status_code == 200:
            self.seq = max(self.seq, *(event["seq"] for event in events))
        return answer

    def do(self, kind: str, instance: str | None = None, /, **payload: Any) -> dict[str, Any]:
        """Send one event that must pass; the answer."""
        answer = self.post(self.event(kind, instance, **payload))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def opened(self) -> str:
        """A new instance."""
        instance = str(uuid4())
        self.do("open", instance)
        return instance

    def click(self, instance: str, x: float = 80, y: float = 60, is_positive: bool = True) -> dict[str, Any]:
        """Click (the disc's centre, unless told otherwise); the answer."""
        return self.do("click", instance, x=x, y=y, is_positive=is_positive)

    def state(self) -> dict[str, Any]:
        """The session as the server has it."""
        return dict(self.http.get(self.path).json())

    def socket(self, **hello: Any) -> ClientConnection:
        """A WebSocket that has said hello (its welcome not yet read)."""
        url = str(self.http.base_url).rstrip("/").replace("http", "ws", 1) + f"{self.path}/ws"
        headers = {"X-Annotator": self.http.headers["X-Annotator"]}
        socket = connect(url, additional_headers=headers, compression=None, proxy=None)
        socket.send(json.dumps({"type": "hello", "epoch": self.epoch, **hello}))
        return socket


def code_of(answer: httpx.Response) -> str:
    """The error code of a refusal, checking the one shape."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details"}
    return str(error["code"])


def put(gateway: Gateway, folder: Path, name: str, data: bytes) -> str:
    """Register a file as an image of the campaign; its id."""
    path = folder / name
    path.write_bytes(data)
    _, info = decode_image(data)
    sha256 = hashlib.sha256(data).hexdigest()
    with gateway.services.database.begin() as conn:
        return add_image(
            conn,
            CAMPAIGN,
            uri=str(path),
            file_name=name,
            uri_sha256=hashlib.sha256(str(path).encode()).hexdigest(),
            version="1",
            sha256=sha256,
            phash="0" * 16,
            group_key=sha256,
            width=info.width,
            height=info.height,
            format=info.format,
            size_bytes=len(data),
        ).image_id
