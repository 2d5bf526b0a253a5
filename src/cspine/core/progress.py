"""How long work says where it is. The command line draws it; everything else may ignore it."""

from __future__ import annotations

import time
from collections.abc import Callable
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


class StageClock:
    """Passes everything on to another watcher, and keeps how long each stage took.

    A stage lasts until it is finished or the next one starts; what is done between two stages is in none of them.
    Stages of one name are added up.
    """

    def __init__(self, watcher: Watcher, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._watcher, self._clock = watcher, clock
        self._seconds: dict[str, float] = {}
        self._stage: str | None = None
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """By name, in the order in which they first started; the one that runs now counts until now."""
        self._settle()
        return dict(self._seconds)

    def start(self, stage: str, total: int) -> None:
        """A stage begins, and the one before it is over."""
        self._settle()
        self._stage, self._since = stage, self._clock()
        self._watcher.start(stage, total)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Pass it on."""
        self._watcher.advance(done, total, note)

    def finish(self, note: str = "") -> None:
        """The stage is over."""
        self._settle()
        self._stage = None
        self._watcher.finish(note)

    def _settle(self) -> None:
        if self._stage is not None:
            now = self._clock()
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
            self._since = now


def count_steps(watcher: Watcher, total: int) -> Callable[[int], None]:
    """Tell a watcher of all steps that are done: what this returns is called with how many more are."""
    done = 0

    def advance(slices: int) -> None:
        nonlocal done
        done += slices
        watcher.advance(done, total)

    return advance
