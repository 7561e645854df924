"""`python -m workers.api`: the gateway process. Settings come from the environment; refiners are found through Ray."""

import logging

from pipeline.storage.annotators import require_tokens
from pipeline.storage.database import open_database
from schemas.errors import ClickloopError
from schemas.logs import end_now, tell_no_start
from schemas.settings import Settings
from workers.api.app import build_services, create_app
from workers.api.logs import configure
from workers.api.server import run
from workers.router import Router

logger = logging.getLogger(__name__)


def read_admin_token(settings: Settings) -> str:
    """The supervisor's own token, "" where no supervisor wrote one."""
    path = settings.workspace / "admin.token"
    return path.read_text().strip() if path.is_file() else ""


def main() -> int:
    """Serve until SIGTERM.

    Returns:
        0 after a drain; 2 when the settings or the database's version do not allow a start; 1 when the database does
        not answer, after which another start may do.
    """
    settings = Settings()
    configure(settings.log_level)
    try:
        database = open_database(settings.resolved_database_url)
        if not settings.is_loopback:
            with database.connect() as conn:
                require_tokens(conn, settings.host)
    except ClickloopError as error:
        return tell_no_start(logger, error)
    services = build_services(settings, database, Router(settings), read_admin_token(settings))
    logger.info("gateway starts host=%s port=%d", settings.host, settings.port)
    run(create_app(services), services)
    database.close()
    return 0


if __name__ == "__main__":
    end_now(main())  # all is written: Ray would take seconds to end in order
