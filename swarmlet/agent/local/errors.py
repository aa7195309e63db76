"""Refusals of this package; *status* is Docker's HTTP status for each. The text says what to do."""

from __future__ import annotations

from typing import ClassVar


class LocalError(Exception):
    status: ClassVar[int] = 500


class NoSuch(LocalError):
    """There is no container, network or volume of that name."""

    status = 404

    def __init__(self, kind: str, reference: str) -> None:
        super().__init__(f"No such {kind}: {reference}")


class Invalid(LocalError):
    """What was asked cannot be meant, or cannot be had here."""

    status = 400


class Forbidden(LocalError):
    status = 403


class Conflict(LocalError):
    """It cannot be done as things are now."""

    status = 409


class StartFailed(LocalError):
    """The container could not be started; *code* is what a shell would say."""

    status = 400

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code
