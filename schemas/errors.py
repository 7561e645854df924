"""The error tree. Every class has a stable `code`; `workers/api/errors.py` maps codes to HTTP statuses.

ClickloopError
├── BadInputError            bad_input           what came in cannot be used (CLI exit 2, HTTP 422)
│   ├── ClickOutsideImageError  click_outside_image
│   ├── BadImageError        bad_image           a file is no image that we can read
│   ├── BadCheckpointError   bad_checkpoint      a checkpoint is corrupt, foreign or does not fit
│   ├── BadAnnotationsError  bad_annotations     a COCO file is malformed
│   └── TooLargeError        too_large           a body, frame, image or session is over its limit (413)
├── NotFoundError            not_found           unknown campaign, task, session, model, ... (404)
├── AuthError                unauthorized        no token, or not a valid one (401)
├── TooManyAttemptsError     too_many_attempts   too many wrong tokens from one address; wait (429)
├── ForbiddenError           forbidden           valid, but not for this object or scope (403)
├── ConflictError            conflict            same id with another payload, same seq with another id (409)
│   ├── GapError             gap                 seq is not last + 1 (409)
│   ├── LeaseLostError       lease_lost          somebody else holds the task now (409)
│   ├── StaleEpochError      stale_epoch         the session was opened elsewhere; this one is read-only (409)
│   ├── StalePreviewError    stale_preview       the accepted mask is not the one that was shown (409)
│   ├── UndoError            undo_mismatch       undo or redo does not name the current top (409)
│   └── StateError           wrong_state         the object's state does not allow this (409)
├── BusyError                busy                bounded queue full or a part not ready; retry later (503)
│   └── DatabaseUnavailableError  database_unavailable
├── EmbeddingMissingError    embedding_missing   the store has no such embedding (internal: encode, then retry)
├── CorruptDataError         corrupt_data        stored bytes do not match their digest
├── DatabaseVersionError     database_version    the database is newer or older than this program
├── WorkspaceLockedError     workspace_locked    another process owns the workspace
└── OutOfSpaceError          out_of_space        a write would pass the free-space floor
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class ClickloopError(Exception):
    """Base of all errors meant for the user.

    Args:
        message: What happened, what was expected, what to do.
        details: JSON-serialisable facts for programs.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the details when the error crosses a process (Ray pickles errors)."""
        return (_rebuild, (type(self), self.message, self.details))


def problem_of(problem: Mapping[str, Any]) -> str:
    """What is wrong by one of pydantic's `ValidationError.errors()`, without its prefix of what our validators say."""
    return str(problem["msg"]).removeprefix("Value error, ")


def first_problem(problems: Sequence[Mapping[str, Any]], whole: str = "") -> str:
    """Where and what the first of pydantic's `ValidationError.errors()` is, without echoing the input.

    Args:
        problems: At least one.
        whole: Name of what was checked, where it is wrong as a whole.
    """
    where = ".".join(str(part) for part in problems[0]["loc"]) or whole
    return f"{where}: {problem_of(problems[0])}"


def _rebuild(cls: type[ClickloopError], message: str, details: dict[str, Any]) -> ClickloopError:
    return cls(message, **details)


class BadInputError(ClickloopError):
    code = "bad_input"


class ClickOutsideImageError(BadInputError):
    code = "click_outside_image"


class BadImageError(BadInputError):
    code = "bad_image"


class BadCheckpointError(BadInputError):
    code = "bad_checkpoint"


class BadAnnotationsError(BadInputError):
    code = "bad_annotations"


class TooLargeError(BadInputError):
    code = "too_large"


class NotFoundError(ClickloopError):
    code = "not_found"


class AuthError(ClickloopError):
    code = "unauthorized"


class TooManyAttemptsError(ClickloopError):
    code = "too_many_attempts"


class ForbiddenError(ClickloopError):
    code = "forbidden"


class ConflictError(ClickloopError):
    code = "conflict"


class GapError(ConflictError):
    code = "gap"


class LeaseLostError(ConflictError):
    code = "lease_lost"


class StaleEpochError(ConflictError):
    code = "stale_epoch"


class StalePreviewError(ConflictError):
    code = "stale_preview"


class UndoError(ConflictError):
    code = "undo_mismatch"


class StateError(ConflictError):
    code = "wrong_state"


class BusyError(ClickloopError):
    code = "busy"


class DatabaseUnavailableError(BusyError):
    code = "database_unavailable"


class EmbeddingMissingError(ClickloopError):
    code = "embedding_missing"


class CorruptDataError(ClickloopError):
    code = "corrupt_data"


class DatabaseVersionError(ClickloopError):
    code = "database_version"


class WorkspaceLockedError(ClickloopError):
    code = "workspace_locked"


class OutOfSpaceError(ClickloopError):
    code = "out_of_space"
