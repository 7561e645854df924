"""No secret reaches a log line or a stored URL."""

import logging

import pytest

from schemas.errors import BadInputError
from schemas.logs import RedactingFormatter, redact, without_password
from schemas.requests import checked
from workers.api.logs import JsonFormatter

SECRETS = [
    "s3://AKIAKEY:hush@bucket/prefix",
    "postgresql+psycopg://me:hush@db:5432/clickloop",
    "https://bucket.s3.amazonaws.com/a?X-Amz-Signature=hush&X-Amz-Date=1",
    "https://host/a?b=1&token=hush",
    "Authorization: Bearer clk_hushhushhush",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_taken_out_and_the_rest_stays(text: str) -> None:
    assert "hush" not in redact(text) and "***" in redact(text)
    assert redact(f"before {text!r} after").startswith("before ") and redact(f"{text} after").endswith(" after")


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/a:b@c", "/data/x:y@z", "ann@example.org", "https://host/a?page=2&limit=3", "12:30 http://a/b@c"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert without_password(text) == text


@pytest.mark.parametrize("formatter", [RedactingFormatter("%(levelname)s %(message)s"), JsonFormatter()])
def test_log_lines_and_tracebacks_hold_none(formatter: logging.Formatter) -> None:
    try:
        raise OSError(f"cannot reach {SECRETS[0]}")
    except OSError as error:
        facts = (type(error), error, error.__traceback__)
        record = logging.LogRecord("a", logging.ERROR, "x", 1, "failed at %s", (SECRETS[1],), facts)
    record.url = SECRETS[2]
    line = formatter.format(record)
    assert "hush" not in line and "cannot reach s3://***@bucket/prefix" in line


@pytest.mark.parametrize(
    ("kind", "name"), [("import", "source"), ("ingest", "images"), ("export", "to"), ("campaign", "annotations")]
)
def test_a_place_with_a_password_is_refused_and_not_repeated(kind: str, name: str) -> None:
    payload = {name: SECRETS[0]}
    if kind == "campaign":
        payload = {"create": {"id": "x", "name": "x", "images": "/a", **payload}}
    with pytest.raises(BadInputError, match="password") as refused:
        checked(kind, payload)
    assert "hush" not in str(refused.value)
