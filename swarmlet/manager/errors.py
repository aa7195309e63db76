"""Why a manager refuses: each says what, why and what to do, and its HTTP status."""

from __future__ import annotations

from swarmlet.model.validation import SpecError

__all__ = [
    "Ambiguous",
    "Conflicting",
    "ControlError",
    "NotFound",
    "OutOfSequence",
    "SpecError",
    "Unavailable",
]


class ControlError(Exception):
    """Base of all refusals; str() is what the user reads."""

    status = 500


class NotFound(ControlError):
    status = 404

    def __init__(self, kind: str, reference: str) -> None:
        super().__init__(f"{kind} {reference} not found")


class Ambiguous(ControlError):
    status = 400

    def __init__(self, kind: str, reference: str, count: int) -> None:
        super().__init__(
            f"{kind} {reference} is ambiguous ({count} matches found); give more characters"
        )


class Conflicting(ControlError):
    """A name or port is taken, or a thing is still in use."""

    status = 409


class OutOfSequence(ControlError):
    """The object changed since the caller looked at it."""

    status = 409

    def __init__(self, kind: str, given: int, current: int) -> None:
        super().__init__(
            f"update out of sequence: {kind} is at version {current}, not {given}; "
            "look at it again and repeat the change"
        )


class Unavailable(ControlError):
    """No leader, no quorum, or it took too long: the change may or may not come."""

    status = 503
