"""What is particular to the clients of object stores: s3fs (S3), gcsfs (Google) and adlfs (Azure).

How they are set up, so that they say soon what `files.with_retry` decides on, and what their errors and listings mean.
Two of them need not be installed, so nothing here imports a client that is not in use.
"""

import base64
import errno
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

SILENCE_S = 30.0
"""For so long Google's storage may send nothing before a try has failed."""
_S3_ATTEMPTS = 2
_AZURE_RETRIES = {"total_retries": 1, "initial_backoff": 0.5, "increment_base": 1, "random_jitter_range": 0.5}
_CREDENTIAL_CODES = frozenset({"400", "InvalidToken", "TokenRefreshRequired"})
"""Of S3, besides those that s3fs calls a PermissionError; a HEAD with an expired token is answered 400 and no more."""
_PASSING = frozenset({408, 425, 429})

# botocore tries again twice by itself, with backoff and jitter, and s3fs once what breaks while it is read: blips end
# there. With their own defaults it takes them minutes to say that an endpoint hangs.
fsspec.config.conf.setdefault("s3", {}).setdefault(
    "config_kwargs", {"retries": {"mode": "standard", "max_attempts": 2}}
)
# gcsfs.GCSFileSystem asks over gRPC what kind a bucket is, before every operation and with retries of its own, which
# needs another permission; its base class speaks HTTP only.
_CLIENTS = {
    "gcsfs.core.GCSFileSystem": (("gs", "gcs"), "Google Cloud Storage needs gcsfs: pip install 'clickloop[gcs]'"),
    "adlfs.AzureBlobFileSystem": (("az", "abfs", "abfss"), "Azure needs adlfs: pip install 'clickloop[azure]'"),
}
for _client, (_protocols, _hint) in _CLIENTS.items():
    for _protocol in _protocols:
        fsspec.register_implementation(_protocol, _client, clobber=True, errtxt=_hint)
# They log with tracebacks what they raise as well.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
logging.getLogger("azure").setLevel(logging.ERROR)


def client_options(protocol: str) -> dict[str, Any]:
    """Keyword arguments of a protocol's file system."""
    if protocol not in {"gs", "gcs"}:
        return {}
    import aiohttp  # heavy, as in the other places here

    # Without it gcsfs waits for ever.
    return {"requests_timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)}


def limit_retries(fs: AbstractFileSystem) -> None:
    """Let a client try again only so often as blips need; gcsfs has no say in it: six times in about half a minute."""
    if "s3" in fs.protocol:
        fs.retries = _S3_ATTEMPTS
    elif "az" in fs.protocol:
        policy = getattr(getattr(fs.service_client, "_config", None), "retry_policy", None)  # adlfs passes none on
        for name, value in _AZURE_RETRIES.items() if policy is not None else ():
            setattr(policy, name, value)


def stored_md5(facts: Mapping[str, Any]) -> str:
    """The MD5 (hex) of an object as its store lists it; "" where it does not say.

    The ETag of what was put to S3 in one part is its MD5.
    """
    if google := facts.get("md5Hash"):
        return base64.b64decode(google).hex()
    if "content_settings" in facts:
        return bytes((facts["content_settings"] or {}).get("content_md5") or b"").hex()
    return str(facts.get("ETag", "")).strip('"')


def changed_at(facts: Mapping[str, Any]) -> datetime | None:
    """When a listed file was written, aware; None: the listing does not say."""
    changed = next((facts[name] for name in ("LastModified", "mtime", "last_modified") if facts.get(name)), None)
    if isinstance(changed, float | int):
        return datetime.fromtimestamp(changed, UTC)
    return changed if isinstance(changed, datetime) else None


def as_os_error(error: BaseException) -> OSError | None:
    """The failure of a store's client as an OSError; None: it is none, but a fault in a program.

    Returns:
        PermissionError for a refusal, FileNotFoundError for what is not there, one with EINVAL for what no other try
        mends, and else one that may pass.
    """
    for translate in (_of_s3, _of_google, _of_azure):
        if (failure := translate(error)) is not None:
            return failure
    if isinstance(error, OSError):
        return error
    import aiohttp

    if isinstance(error, aiohttp.ClientError):
        return ConnectionError(str(error) or type(error).__name__)
    # adlfs wraps some in a RuntimeError.
    return as_os_error(error.__cause__) if isinstance(error, RuntimeError) and error.__cause__ else None


def _of_s3(error: BaseException) -> OSError | None:
    if isinstance(error, OSError):
        answer = getattr(error.__cause__, "response", None) or {}
        if isinstance(answer, dict) and answer.get("Error", {}).get("Code") in _CREDENTIAL_CODES:
            return PermissionError(f"{error.strerror or error} (on S3: the credentials have expired or are no good)")
        return None
    if "botocore" not in sys.modules:
        return None
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    silent = exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError
    if isinstance(error, (*silent, ResponseParserError)):
        return ConnectionError(str(error) or type(error).__name__)
    keyless = exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError
    if isinstance(error, (*keyless, exceptions.TokenRetrievalError, exceptions.SSOError)):
        return PermissionError(str(error))
    return None


def _of_google(error: BaseException) -> OSError | None:
    if "gcsfs" not in sys.modules:
        return None
    from gcsfs.retry import ChecksumError, HttpError, NonRetryableError
    from google.auth.exceptions import GoogleAuthError, TransportError

    text = str(error)
    if isinstance(error, HttpError):
        return _of_status(int(error.code or 0), text)
    if type(error) is OSError and text.startswith("Forbidden"):
        return PermissionError(text)
    if isinstance(error, ValueError) and text.startswith(("Bad Request", "Bucket is requester pays")):
        return OSError(errno.EINVAL, text)
    if isinstance(error, TransportError | ChecksumError):
        return ConnectionError(text or type(error).__name__)
    if isinstance(error, GoogleAuthError | NonRetryableError):
        return PermissionError(f"{text} {error.__cause__ or ''}".strip())
    return None


def _of_azure(error: BaseException) -> OSError | None:
    if "azure.core" not in sys.modules:
        return None
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

    if not isinstance(error, AzureError):
        return None
    text = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, ClientAuthenticationError):
        return PermissionError(text)
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        return _of_status(error.status_code, text)
    return ConnectionError(text)


def _of_status(status: int, text: str) -> OSError:
    """What an answer with an HTTP status of 400 or more means."""
    if status in {401, 403}:
        return PermissionError(text)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, text)
    if 400 <= status < 500 and status not in _PASSING:
        return OSError(errno.EINVAL, text)
    return ConnectionError(text or f"HTTP status {status}")
