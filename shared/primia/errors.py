"""One exception tree: ours (LocalError) and theirs (PeerError).

Every error carries a stable ``code`` (the last part of its RFC 9457 ``type``), an HTTP status, a
``detail`` that names what is wrong and a ``hint`` that says what to do. None of them may carry a
share, key, weight, activation or pixel.
"""

from __future__ import annotations

from typing import ClassVar


class PrimiaError(Exception):
    """Root of the tree. ``extra`` holds JSON-serialisable members for the problem document."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500

    def __init__(self, detail: str, *, hint: str | None = None, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.detail} {self.hint}" if self.hint else self.detail


class LocalError(PrimiaError):
    """Something on our side: the user's input, our settings, our resources."""


class InvalidInput(LocalError):
    """A value a user gave that cannot be accepted."""

    code = "invalid-input"
    title = "Invalid input"
    status = 422


class NotFound(LocalError):
    code = "not-found"
    title = "Not found"
    status = 404


class Conflict(LocalError):
    """The request is sound but does not fit the present state."""

    code = "conflict"
    title = "Conflict with the present state"
    status = 409


class Forbidden(LocalError):
    code = "forbidden"
    title = "Not allowed"
    status = 403


class Unauthenticated(LocalError):
    code = "unauthenticated"
    title = "Not authenticated"
    status = 401


class TooLarge(LocalError):
    code = "too-large"
    title = "Body over the limit"
    status = 413


class Spent(LocalError):
    """One-time material or a session that has been used up."""

    code = "spent"
    title = "Already used"
    status = 410


class Unavailable(LocalError):
    code = "unavailable"
    title = "Not available at present"
    status = 503


class StorageFull(LocalError):
    code = "storage-full"
    title = "No free disk space"
    status = 507


class UnsafeSettings(LocalError):
    """Settings that would be unsafe to run with; raised at start, never later."""

    code = "unsafe-settings"
    title = "Settings refused"
    status = 500


class UnsupportedModel(LocalError):
    """A model that the plan compiler cannot take; the detail names the module."""

    code = "unsupported-model"
    title = "Model not supported"
    status = 422


class PeerError(PrimiaError):
    """What came from another party is wrong, or did not come."""

    code = "peer-error"
    title = "Another service misbehaved"
    status = 502


class MalformedMessage(PeerError):
    """Bytes that do not parse: wrong magic, version, length, type or leftovers."""

    code = "malformed-message"
    title = "Malformed message"
    status = 400


class UnexpectedMessage(PeerError):
    """A well-formed message that the protocol does not expect now."""

    code = "unexpected-message"
    title = "Unexpected message"
    status = 409


class PeerUnavailable(PeerError):
    """The other service could not be reached, or not in time; the call may be repeated."""

    code = "peer-unavailable"
    title = "Another service cannot be reached"
    status = 503


class PeerRefused(PeerError):
    """The other service answered with a problem document (kept in ``extra``)."""

    code = "peer-refused"
    title = "Another service refused"
    status = 502
