"""What can be wrong with a round of secure aggregation, beyond malformed bytes."""

from __future__ import annotations

from primia.errors import LocalError, PeerError


class InvalidUpdate(LocalError):
    """An update that cannot be aggregated: NaN, infinity, another shape, too large a change."""

    code = "invalid-update"
    title = "Update refused"
    status = 422


class BelowThreshold(PeerError):
    """Too few nodes remain for the round to be opened without exposing one of them."""

    code = "below-threshold"
    title = "Too few nodes remain"
    status = 409


class InvalidSignature(PeerError):
    """A signature that is not the named node's over what it should have signed."""

    code = "invalid-signature"
    title = "Signature refused"
    status = 403


class InconsistentRound(PeerError):
    """Messages that are each well formed but contradict one another or this node's own."""

    code = "inconsistent-round"
    title = "The round's messages contradict one another"
    status = 409
