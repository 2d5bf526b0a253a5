"""How long work says where it is. The command line draws it; everything else may ignore it."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Told about every stage of a comparison."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins; `total` steps are to come."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the stage are done; `note` is shown beside the bar."""

    def finish(self, note: str = "") -> None:
        """The stage is over; `note` stays on the screen."""


class Silent:
    """A watcher that looks away."""

    def start(self, stage: str, total: int) -> None:
        """Ignore it."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Ignore it."""

    def finish(self, note: str = "") -> None:
        """Ignore it."""
