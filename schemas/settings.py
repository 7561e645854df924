"""Settings, read by entry points only and passed down. Environment: CLICKLOOP_<NAME>; or a TOML file named by
CLICKLOOP_CONFIG. Nothing in `pipeline` reads the environment."""

import os
import tomllib
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from schemas.engines import EngineSetting
from schemas.errors import BadInputError


class Settings(BaseSettings):
    """Where things are and how much of the machine each part may take."""

    model_config = SettingsConfigDict(env_prefix="CLICKLOOP_", extra="ignore", use_attribute_docstrings=True)

    workspace: Path = Path(".clickloop")
    """Folder of the embedded database, local storage, logs and serve.json."""
    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite at WORKSPACE/clickloop.db."""
    storage_url: str = ""
    """fsspec URL of embeddings, models, adapters and snapshots; empty: WORKSPACE/storage."""
    ray_address: str = ""
    """Address of a Ray cluster; empty: a local Ray is started."""
    host: str = "127.0.0.1"
    """Address that the gateway listens on; anything but loopback requires tokens."""
    port: int = Field(default=8700, ge=0, le=65535)
    """Port of the gateway; 0: any free one."""
    allowed_hosts: list[str] = ["127.0.0.1", "localhost", "[::1]"]
    """Host names (without port) that the gateway answers to."""
    source_roots: list[str] = []
    """URLs below which ingest and export over HTTP may read and write, besides the workspace. The CLI is trusted."""
    refiners: int = Field(default=1, ge=1, le=64)
    """Refiner actors."""
    encoders: int = Field(default=1, ge=1, le=64)
    """Encoder actors."""
    refiner_threads: int = Field(default=1, ge=1, le=64)
    """Torch threads of each refiner."""
    engine: EngineSetting = "auto"
    """How refiners run the network of a click for new instances: torch-float32, torch-bfloat16, onnx-float32 (needs
    clickloop[onnx]); auto: what `clickloop doctor --tune` found best on this machine, else torch-float32."""
    encoder_threads: int = Field(default=1, ge=1, le=64)
    """Torch threads of each encoder."""
    gpus_per_actor: float = Field(default=0.0, ge=0, le=1)
    """GPUs that each actor asks for; 0: an equal share of those the cluster has when the actors start. To be set
    where GPU nodes come only when something asks for them."""
    refiner_cache_mb: int = Field(default=512, ge=16)
    """Megabytes of embeddings, decoded images and prefix states that a refiner keeps."""
    lease_s: float = Field(default=600.0, gt=0)
    """Seconds that a claim lasts without an event, unless the campaign says otherwise."""
    refine_timeout_s: float = Field(default=2.0, gt=0)
    """Seconds that a refiner may take for a click before the next one is asked."""
    refine_queue: int = Field(default=64, ge=1)
    """Calls waiting for one refiner before the gateway answers busy."""
    encode_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that encoding one missing image may take."""
    max_body_bytes: int = Field(default=1_000_000, ge=1000)
    """Largest HTTP request body."""
    max_frame_bytes: int = Field(default=256_000, ge=1000)
    """Largest WebSocket frame from a client."""
    max_events_per_instance: int = Field(default=2000, ge=10)
    """Events that one instance may have."""
    max_image_pixels: int = Field(default=120_000_000, ge=1)
    """Images with more pixels (by their header) are refused."""
    storage_wait_s: float = Field(default=300.0, ge=0)
    """Seconds for which a job waits for an object store that does not answer; then it fails, and can be run again."""
    min_free_bytes: int = Field(default=500_000_000, ge=0)
    """Precompute and export stop before the disk has less than this."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """Level of the structured logs: DEBUG, INFO, WARNING, ERROR or CRITICAL."""

    @field_validator("workspace", "host", mode="before")
    @classmethod
    def _named(cls, name: object) -> object:
        if name == "":
            raise ValueError("it is empty, as from a variable that is not set")
        return name

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, level: object) -> object:
        return level.upper() if isinstance(level, str) else level

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        config = os.environ.get("CLICKLOOP_CONFIG")
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if not config:
            return sources
        _check_config(Path(config), settings_cls)
        return (*sources, TomlConfigSettingsSource(settings_cls, Path(config)))

    @property
    def resolved_database_url(self) -> str:
        """The database's URL with the default filled in."""
        return self.database_url or sqlite_url(self.workspace.resolve() / "clickloop.db")

    @property
    def sqlite_path(self) -> Path | None:
        """The database's file, None when the database is a server's."""
        if not self.resolved_database_url.startswith("sqlite"):
            return None
        from sqlalchemy import make_url  # takes as long to import as all that a command line begins with
        from sqlalchemy.exc import ArgumentError

        try:
            path = make_url(self.resolved_database_url).database
        except ArgumentError:  # whoever opens it says so
            return None
        return Path(unquote(path)) if path else None

    @property
    def resolved_storage_url(self) -> str:
        """The storage's URL with the default filled in, without a trailing slash."""
        return (self.storage_url or str(self.workspace.resolve() / "storage")).rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """Whether the gateway listens on this machine only."""
        return self.host in {"127.0.0.1", "localhost", "::1"}


def sqlite_url(path: Path) -> str:
    """The URL of a database file: in its path "?", "#" and "%" are no marks of a URL.

    Whoever parses one decodes the path: SQLAlchemy does so only from 2.1 on.
    """
    return f"sqlite:///{quote(str(path), safe=' /:@')}"


def _check_config(path: Path, settings_cls: type[BaseSettings]) -> None:
    """Refuse a file of settings that would be passed over, in whole or in part: work would go to another workspace."""
    try:
        found = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"CLICKLOOP_CONFIG names {path}, which is no readable TOML file: {error}.") from error
    unknown = sorted(found.keys() - settings_cls.model_fields.keys())
    if unknown:
        raise BadInputError(
            f"{path} (CLICKLOOP_CONFIG) has {unknown[0]!r}, which is no setting (docs/reference.md has them)."
        )
