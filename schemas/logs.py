"""Secrets stay out of log lines, and out of URLs that are stored where others read them; how processes end."""

import logging
import os
import re
import sys
from contextlib import suppress
from typing import NoReturn

from schemas.errors import BadInputError, ClickloopError, DatabaseUnavailableError

_PASSWORD = re.compile(r"([A-Za-z][\w+.-]*://)[^/\s@'\"]*:[^/\s@'\"]*@")
"""Of a URL: who and with which secret."""
_PARAMETER = re.compile(
    r"([?&](?:x-amz-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|(?:access_)?token|password|"
    r"secret|key)=)[^&\s'\"]+",
    re.IGNORECASE,
)
"""Of a query: what signs a URL."""
_TOKEN = re.compile(r"\bclk_[\w-]{8,}")


def redact(text: str) -> str:
    """The text without passwords and signatures in URLs, and without access tokens."""
    text = _PASSWORD.sub(r"\1***@", text)
    return _TOKEN.sub("clk_***", _PARAMETER.sub(r"\1***", text))


def without_password(url: str) -> str:
    """The URL as it is.

    Raises:
        BadInputError: It carries a password, which would be stored and shown.
    """
    if _PASSWORD.match(url):
        raise BadInputError(
            "A URL with a password would be stored and shown to others. Give the storage's credentials to the server "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a configuration file of fsspec) and leave them out here."
        )
    return url


class RedactingFormatter(logging.Formatter):
    """Plain lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return redact(super().format(record))


def log_plainly(level: int, line: str) -> None:
    """Send every logger of this process to stderr, unless that is set up already.

    Args:
        level: Of the root logger.
        line: Format, as `logging.Formatter` takes it.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(line))
    logging.basicConfig(level=level, handlers=[handler])


def tell_no_start(logger: logging.Logger, error: ClickloopError) -> int:
    """Say why a process does not start.

    Returns:
        Its exit code: 1 where the database does not answer, after which another start may do; else 2.
    """
    if isinstance(error, DatabaseUnavailableError):
        logger.error("cannot start yet: %s", error.message)
        return 1
    logger.error("cannot start: %s", error.message)
    return 2


def end_now(status: int) -> NoReturn:
    """End this process without waiting for what libraries would still do; nothing of ours may be left to do."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more, or it was closed for that
            stream.flush()
    os._exit(status)
