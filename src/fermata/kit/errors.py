"""The one table of errors: every failure Fermata can name, its stable code and its kind.

A kind decides three things elsewhere, each in one table of its own: the HTTP status
(`edges/http/errors.py`), the exit status of the command line (`edges/cli.py`) and whether durable work
is tried again (`runs/model.py`). The message is for the person who reads it: it names the field or the
thing, says what is wrong, and never holds a secret, a stack trace or a path of the host.
"""

from enum import StrEnum
from typing import ClassVar


class ErrorKind(StrEnum):
    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    PRECONDITION = "precondition"
    TOO_LARGE = "too_large"
    LIMIT = "limit"
    UPSTREAM = "upstream"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    INTERNAL = "internal"


class FermataError(Exception):
    """Base of every error that may reach a client. Subclasses set `code` (stable) and `kind`."""

    code: ClassVar[str] = "internal"
    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL

    def __init__(self, message: str, *, field: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        #: Path of the offending field in the request, outermost first; empty when no field is to blame.
        self.field = field


class InvalidRequestError(FermataError):
    code = "invalid_request"
    kind = ErrorKind.INVALID


class BodyTooLargeError(FermataError):
    code = "body_too_large"
    kind = ErrorKind.TOO_LARGE


class UnauthenticatedError(FermataError):
    code = "unauthenticated"
    kind = ErrorKind.UNAUTHENTICATED


class ForbiddenError(FermataError):
    code = "forbidden"
    kind = ErrorKind.FORBIDDEN


class NotFoundError(FermataError):
    code = "not_found"
    kind = ErrorKind.NOT_FOUND


class ConflictError(FermataError):
    code = "conflict"
    kind = ErrorKind.CONFLICT


class VersionMismatchError(FermataError):
    """A guarded move found another version of the row than the caller had seen."""

    code = "version_mismatch"
    kind = ErrorKind.PRECONDITION


class LimitReachedError(FermataError):
    """A limit of an account, an organization or the host was reached. Trying later may succeed."""

    code = "limit_reached"
    kind = ErrorKind.LIMIT


class SettingsError(FermataError):
    """A setting is wrong or missing. Raised at start only."""

    code = "settings"
    kind = ErrorKind.INVALID


class LeaseLostError(FermataError):
    """The run is no longer ours: another worker holds a higher fence. Stop without writing anything."""

    code = "lease_lost"
    kind = ErrorKind.CONFLICT


class SandboxGoneError(FermataError):
    """The provider knows no sandbox of this name, or its disk is missing. Never answered by an empty one."""

    code = "sandbox_gone"
    kind = ErrorKind.NOT_FOUND


class SandboxStoppedError(FermataError):
    """The sandbox exists and its disk is kept, but nothing runs in it. `resume` brings it back."""

    code = "sandbox_stopped"
    kind = ErrorKind.CONFLICT


class SandboxExistsError(FermataError):
    """A sandbox of this name exists already."""

    code = "sandbox_exists"
    kind = ErrorKind.CONFLICT


class SandboxPathError(FermataError):
    """A path inside a sandbox cannot be used as asked: missing, not a regular file, not a directory."""

    code = "sandbox_path"
    kind = ErrorKind.INVALID


class SandboxFailedError(FermataError):
    """The provider tried and failed. The message is fit for a user; details are in the server's log."""

    code = "sandbox_failed"
    kind = ErrorKind.UPSTREAM


class SandboxUnsupportedError(FermataError):
    """This machine or this provider cannot do it; the message says what is missing and how to get it."""

    code = "sandbox_unsupported"
    kind = ErrorKind.UNAVAILABLE


class RepositoryError(FermataError):
    """A repository could not be created, read or cloned."""

    code = "repository"
    kind = ErrorKind.UPSTREAM


class ModelError(FermataError):
    """A model vendor refused or failed a call."""

    code = "model"
    kind = ErrorKind.UPSTREAM


class UnavailableError(FermataError):
    """The server cannot do this now: it is starting, draining or short of a resource."""

    code = "unavailable"
    kind = ErrorKind.UNAVAILABLE


class TimedOutError(FermataError):
    code = "timed_out"
    kind = ErrorKind.TIMEOUT


class InternalError(FermataError):
    """Something of ours broke. The log has the details, the client gets a sentence."""
