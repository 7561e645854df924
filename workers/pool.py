"""The named actors of one product instance: started by their owner, looked up by everybody else.

Knows Ray and the actors' names; does not know how Ray was started or where a request should go.
"""

import logging
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from schemas.engines import read_tuning
from schemas.errors import BusyError, ClickloopError
from schemas.predictions import Engine
from schemas.settings import Settings
from workers.actors import EncoderActor, RefinerActor

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
"""Actors import torch, which takes seconds, more under load."""
_FEW_CPUS = 4


class Pool:
    """Handles of the actors in a namespace.

    Args:
        settings: Say how many there are, and what each may take.
        namespace: Of the actors.

    Attributes:
        refiners: Name to handle, sorted by name.
        encoders: Name to handle, sorted by name.
    """

    def __init__(self, settings: Settings, namespace: str) -> None:
        self._settings = settings
        self.namespace = namespace
        self.refiners: dict[str, ActorHandle] = {}
        self.encoders: dict[str, ActorHandle] = {}

    @staticmethod
    def start(settings: Settings, namespace: str) -> "Pool":
        """Create the actors; they live as long as this process. Returns once all answer.

        Raises:
            BusyError: They do not answer in time.
        """
        pool = Pool(settings, namespace)
        for role, count in (("refiner", settings.refiners), ("encoder", settings.encoders)):
            for index in range(count):
                pool._create(role, f"{role}-{index}")
        pool.wait(START_TIMEOUT_S)
        return pool

    @staticmethod
    def find(settings: Settings, namespace: str) -> "Pool":
        """Look up the actors that another process owns.

        Raises:
            BusyError: They are not there (yet).
        """
        pool = Pool(settings, namespace)
        try:
            for role, count in (("refiner", settings.refiners), ("encoder", settings.encoders)):
                for index in range(count):
                    pool._of_role(role)[f"{role}-{index}"] = ray.get_actor(f"{role}-{index}", namespace)
        except ValueError as error:
            raise BusyError(f"The workers are starting: {error}", retry_after_s=2) from error
        return pool

    def wait(self, timeout_s: float) -> None:
        """Wait until every actor answers.

        Raises:
            BusyError: One does not in time.
        """
        try:
            ray.get([handle.ping.remote() for handle in self._all().values()], timeout=timeout_s)
        except (GetTimeoutError, RayActorError) as error:
            raise BusyError(f"Not every worker answers within {timeout_s:.0f} s: {error}", retry_after_s=5) from error

    def answering(self, timeout_s: float) -> frozenset[str]:
        """Names of the actors that answer in time."""
        pings = {handle.ping.remote(): name for name, handle in self._all().items()}
        done, _ = ray.wait(list(pings), num_returns=len(pings), timeout=timeout_s)
        return frozenset(pings[ref] for ref in done if _is_ok(ref))

    def replace_dead(self) -> list[str]:
        """Create again what Ray itself cannot restart (its node is gone). Only the owner may.

        Returns:
            Names of the actors that were created.
        """
        pings = {name: handle.ping.remote() for name, handle in self._all().items()}
        ray.wait(list(pings.values()), num_returns=len(pings), timeout=1.0)
        created = []
        for name, ref in pings.items():
            if _is_dead(ref):
                logger.warning("actor died for good, creating it again: name=%s", name)
                self._create(name.split("-")[0], name)
                created.append(name)
        return created

    def restart(self, name: str) -> None:
        """Kill an actor that does not answer; Ray starts it again."""
        logger.warning("restarting an actor that does not answer: name=%s", name)
        ray.kill(self._all()[name], no_restart=False)

    def load_everywhere(
        self, model_digest: str, adapter_digest: str | None = None, timeout_s: float = 60.0
    ) -> list[Engine]:
        """Have every refiner load and try weights, so that clicks find them ready; done before a promotion.

        Raises:
            NotFoundError: The storage has no such file.
            BadCheckpointError: A file is corrupt or does not fit.
            BusyError: A refiner does not answer in time.
        """
        try:
            engines: list[Engine] = ray.get(
                [handle.load.remote(model_digest, adapter_digest) for handle in self.refiners.values()],
                timeout=timeout_s,
            )
        except RayTaskError as error:
            raise cause_of(error) from None
        except (GetTimeoutError, RayActorError) as error:
            raise BusyError(f"Not every refiner could load the weights in time: {error}", retry_after_s=5) from error
        return engines

    def trainer(self) -> ActorHandle:
        """The trainer actor; created when it is not there, and then gone with this process."""
        from workers.trainer import TrainerActor

        return self._actor(TrainerActor, "trainer", self._options("trainer")).remote(
            threads=self._settings.encoder_threads,
            cache_dir=self._cache_dir(),
            storage_wait_s=self._settings.storage_wait_s,
            max_image_pixels=self._settings.max_image_pixels,
        )

    def _create(self, role: str, name: str) -> None:
        settings = self._settings
        common: dict[str, Any] = {
            "storage_url": settings.resolved_storage_url,
            "cache_dir": self._cache_dir(),
            "max_image_pixels": settings.max_image_pixels,
        }
        if role == "refiner":
            own: dict[str, Any] = {
                "cache_bytes": settings.refiner_cache_mb * 1_000_000,
                "threads": settings.refiner_threads,
                "engine": settings.engine,
                "tuning": read_tuning(settings.workspace),
                "image_wait_s": settings.refine_timeout_s / 2,
            }
            self.refiners[name] = self._actor(RefinerActor, name, self._options(role)).remote(**common, **own)
        else:
            own = {"min_free_bytes": settings.min_free_bytes, "threads": settings.encoder_threads}
            self.encoders[name] = self._actor(EncoderActor, name, self._options(role)).remote(**common, **own)

    def _actor(self, actor_class: Any, name: str, options: dict[str, Any]) -> Any:
        return actor_class.options(
            name=name, namespace=self.namespace, get_if_exists=True, max_restarts=-1, max_task_retries=0, **options
        )

    def _options(self, role: str) -> dict[str, float]:
        """Resources: on this machine refiners take none, so that none waits for a core, and heavy roles take one where
        cores are plenty. On a cluster all take what they use: who takes nothing may land on any node."""
        settings, resources = self._settings, ray.cluster_resources()
        gpus = settings.gpus_per_actor
        if not gpus:
            actors = settings.refiners + settings.encoders + 1
            gpus = min(1.0, int(1000 * resources.get("GPU", 0) / actors) / 1000)
        if settings.ray_address:
            cpus = settings.refiner_threads if role == "refiner" else settings.encoder_threads
        else:
            cpus = 0 if role == "refiner" or resources.get("CPU", 0) < _FEW_CPUS else 1
        return {"num_cpus": cpus, "num_gpus": gpus}

    def _cache_dir(self) -> str:
        return str(self._settings.workspace.resolve() / "cache")

    def _of_role(self, role: str) -> dict[str, ActorHandle]:
        return self.refiners if role == "refiner" else self.encoders

    def _all(self) -> dict[str, ActorHandle]:
        return {**self.refiners, **self.encoders}


def cause_of(error: RayTaskError) -> Exception:
    """The error that an actor raised, if it is meant for the user; else Ray's, which carries the traceback."""
    return error.cause if isinstance(error.cause, ClickloopError) else error


def _is_ok(ref: Any) -> bool:
    try:
        ray.get(ref, timeout=0)
    except (RayActorError, RayTaskError, GetTimeoutError):
        return False
    return True


def _is_dead(ref: Any) -> bool:
    try:
        ray.get(ref, timeout=0)
    except ray.exceptions.ActorDiedError:
        return True
    except (RayActorError, RayTaskError, GetTimeoutError):
        return False
    return False
