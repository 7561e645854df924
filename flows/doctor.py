"""The checks of `clickloop doctor`: does every part that is needed work here? Leaves nothing but empty folders."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from uuid import uuid4

from pydantic import BaseModel

from flows.client import read_serve_file
from schemas.engines import DEFAULT_ENGINE, check_available, read_tuning
from schemas.errors import ClickloopError
from schemas.settings import Settings
from schemas.version import own_version

MIN_PYTHON = (3, 11)


class Check(BaseModel):
    """One part: `needed` ones must be ok."""

    name: str
    ok: bool
    detail: str
    needed: bool = True


def run_checks(settings: Settings) -> list[Check]:
    """Check every part, in the order in which they build on each other."""
    needed: dict[str, Callable[[Settings], str]] = {
        "python": _python,
        "torch": _torch,
        "packages": _packages,
        "weights": _weights,
        "engine": _engine,
        "disk": _disk,
        "storage": _storage,
        "database": _database,
        "ray": _ray,
    }
    checks = [_checked(name, check, settings) for name, check in needed.items()]
    for name, programs in (("chromium", ("chromium", "chromium-browser")), ("postgres", ("pg_ctl", "pg_config"))):
        found = next(filter(None, map(shutil.which, programs)), None)
        checks.append(Check(name=name, ok=found is not None, detail=found or "only tests want it", needed=False))
    facts = read_serve_file(settings.workspace)
    detail = str(facts["url"]) if facts else "not running in this workspace"
    return [*checks, Check(name="serve", ok=facts is not None, detail=detail, needed=False)]


def _checked(name: str, check: Callable[[Settings], str], settings: Settings) -> Check:
    try:
        return Check(name=name, ok=True, detail=check(settings))
    except Exception as error:  # whatever is wrong is the finding
        message = str(error) if isinstance(error, ClickloopError | RuntimeError) else f"{type(error).__name__}: {error}"
        return Check(name=name, ok=False, detail=" ".join(message.split())[:300])


def _python(settings: Settings) -> str:
    if sys.version_info < MIN_PYTHON:
        raise RuntimeError(f"{sys.version.split()[0]}; {'.'.join(map(str, MIN_PYTHON))} or newer is needed")
    return f"{sys.version.split()[0]} at {sys.executable}"


def _torch(settings: Settings) -> str:
    code = (
        "import torch, torchvision, timm; from torchvision.ops import roi_align;"
        "print(torch.__version__, 'torchvision', torchvision.__version__, 'timm', timm.__version__, 'cuda',"
        " torch.cuda.is_available(), 'threads', torch.get_num_threads())"
    )
    return _python_says(code, {})


def _python_says(code: str, environment: dict[str, str]) -> str:
    """What a Python of its own prints; RuntimeError with its last line of error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return done.stdout.strip()


def _packages(settings: Settings) -> str:
    names = ("ray", "prefect", "fastapi", "sqlalchemy", "pyarrow")
    found = [("clickloop", own_version()), *((name, importlib.metadata.version(name)) for name in names)]
    return ", ".join(f"{name} {version}" for name, version in found)


def _weights(settings: Settings) -> str:
    from pipeline.models import default_weights_path, load_model, weights_digest

    model = load_model("default")
    return f"{model.model_id} {weights_digest(default_weights_path('default'))[:12]}"


def _engine(settings: Settings) -> str:
    check_available(settings.engine)
    if settings.engine != "auto":
        return settings.engine
    found = read_tuning(settings.workspace)
    if found is None:
        return f"{DEFAULT_ENGINE}; `clickloop doctor --tune` finds out whether another one is faster here"
    return f"{found.engine} for model {found.model_digest[:12]} on {found.machine}, else {DEFAULT_ENGINE}"


def _disk(settings: Settings) -> str:
    folder = settings.workspace.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < settings.min_free_bytes:
        raise RuntimeError(f"{free / 1e9:.1f} GB free at {folder}, the floor is {settings.min_free_bytes / 1e9:.1f} GB")
    return f"{free / 1e9:.1f} GB free at {folder}"


def _storage(settings: Settings) -> str:
    from pipeline.storage import files

    url = settings.resolved_storage_url
    fs, root = files.open_storage(url)
    path = files.join(root, f".doctor-{uuid4()}")
    try:
        files.write_atomic(fs, path, b"clickloop")
        try:
            if files.read_bytes(fs, path) != b"clickloop":
                raise RuntimeError(f"{path} does not read back as written")
        finally:
            files.remove(fs, path)
    except OSError as error:
        if files.is_local(fs):
            raise RuntimeError(f"{root} cannot be written: {error.strerror or error}") from error
        raise files.storage_error(error, f"Writing to {url}") from error
    return f"{url} can be written and read"


def _database(settings: Settings) -> str:
    from pipeline.storage.database import database_revision, head_revision
    from pipeline.storage.lock import is_there

    url = settings.resolved_database_url
    if settings.sqlite_path is not None and not is_there(settings.sqlite_path):
        return "none yet; the first campaign makes it"
    found, head = database_revision(url), head_revision()
    if found != head:
        raise RuntimeError(f"at revision {found or 'none'}, this program needs {head}: run `clickloop db upgrade`")
    return f"at revision {found}"


def _ray(settings: Settings) -> str:
    """Start Ray in a workspace of its own (or attach to the cluster of the settings), and end it."""
    code = (
        "import ray; from workers import cluster; from schemas.settings import Settings; s = Settings();"
        "cluster.connect(cluster.find_info(s)) if s.ray_address else cluster.start_ray(s);"
        "print(ray.__version__, 'with', ray.cluster_resources().get('CPU', 0), 'CPUs'); ray.shutdown()"
    )
    with tempfile.TemporaryDirectory(prefix="clickloop-doctor-") as folder:
        return _python_says(code, {"CLICKLOOP_WORKSPACE": folder, "CLICKLOOP_RAY_ADDRESS": settings.ray_address})
