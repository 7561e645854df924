"""From an error's code to an HTTP status and one JSON shape: {"error": {"code", "message", "details"}}."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from schemas.errors import ClickloopError, first_problem

STATUS: dict[str, int] = {
    "error": 500,
    "bad_input": 422,
    "click_outside_image": 422,
    "bad_image": 422,
    "bad_checkpoint": 422,
    "bad_annotations": 422,
    "too_large": 413,
    "not_found": 404,
    "unauthorized": 401,
    "too_many_attempts": 429,
    "forbidden": 403,
    "conflict": 409,
    "gap": 409,
    "lease_lost": 409,
    "stale_epoch": 409,
    "stale_preview": 409,
    "undo_mismatch": 409,
    "wrong_state": 409,
    "busy": 503,
    "database_unavailable": 503,
    "embedding_missing": 503,
    "corrupt_data": 500,
    "database_version": 503,
    "workspace_locked": 409,
    "out_of_space": 507,
}
RETRY_AFTER_S = 1
_HTTP_CODES = {404: "not_found", 405: "bad_input", 400: "bad_input"}


class ErrorFacts(BaseModel):
    """What went wrong: a stable code, words for a person, facts for a program."""

    code: str
    message: str
    details: dict[str, Any]


class ErrorAnswer(BaseModel):
    """The one shape of all refusals."""

    error: ErrorFacts


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "Refused; `code` says why."},
    503: {"model": ErrorAnswer, "description": "Not now; come back after Retry-After seconds."},
    507: {"model": ErrorAnswer, "description": "No space left."},
}
"""Of every route, for the OpenAPI document."""


def of_bytes(*media_types: str, cached: bool = False) -> dict[int | str, dict[str, Any]]:
    """The answer of a route that hands out a file, for the OpenAPI document; `cached`: also 304 by its ETag."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    answers: dict[int | str, dict[str, Any]] = {200: {"content": dict.fromkeys(media_types, binary)}}
    return answers | ({304: {"description": "The ETag that was sent is still right."}} if cached else {})


def error_body(error: ClickloopError) -> dict[str, Any]:
    """The JSON shape of an error."""
    return {"error": {"code": error.code, "message": error.message, "details": error.details}}


def error_response(error: ClickloopError) -> JSONResponse:
    """The answer for an error; a 503 and a 429 say when to come back."""
    status = STATUS[error.code]
    headers = {"Retry-After": str(error.details.get("retry_after_s", RETRY_AFTER_S))} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status, headers)


def install(app: FastAPI) -> None:
    """Answer every error in the one shape."""

    @app.exception_handler(ClickloopError)
    async def ours(request: Request, error: ClickloopError) -> JSONResponse:
        request.scope["clickloop.code"] = error.code
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        request.scope["clickloop.code"] = "bad_input"
        body = {"error": {"code": "bad_input", "message": f"{first_problem(error.errors())}.", "details": {}}}
        return JSONResponse(body, 422)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        code = _HTTP_CODES.get(error.status_code, "error")
        request.scope["clickloop.code"] = code
        body = {"error": {"code": code, "message": str(error.detail), "details": {}}}
        return JSONResponse(body, error.status_code, error.headers)
