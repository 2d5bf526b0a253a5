"""A volume that is still being read: its slices can be had as they come, before intake has judged it.

What is made of them counts only if intake then takes the volume.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cspine.data.types import Slice, find_nearest
from cspine.studies.volume import Volume


class AbandonedError(Exception):
    """The volume will not be finished; who finished it, or gave it up, says why."""


class GrowingVolume:
    """The slices of a volume, from feet to head, for those who can wait for each.

    One thread fills `volume.hu` and says how far it is; any number may ask for slices.

    Args:
        volume: Complete but for its voxels.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._there = 0
        self._abandoned = False
        self._changed = threading.Condition()

    @property
    def slice_ids(self) -> tuple[str, ...]:
        """Of all slices, in order."""
        return tuple(self.volume.slice_id(index) for index in range(len(self.volume)))

    @property
    def positions_mm(self) -> npt.NDArray[np.float64]:
        """(n,) Along the normal, growing."""
        return self.volume.positions_mm

    @property
    def abandoned(self) -> bool:
        """Whether no more slices will come, or intake refused the volume."""
        return self._abandoned

    def advance(self, there: int) -> None:
        """The first `there` slices are in place."""
        with self._changed:
            self._there = there
            self._changed.notify_all()

    def abandon(self) -> None:
        """No more slices will come."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def read(self, index: int, offsets_mm: Sequence[float]) -> Slice:
        """One slice with those at `offsets_mm` from it, as soon as all of them are there.

        Raises:
            AbandonedError: they will never be.
        """
        position = float(self.positions_mm[index])
        needed = max([index, *find_nearest(self.positions_mm, position, offsets_mm)])
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._there > needed)
            if self._abandoned:
                raise AbandonedError
        return self.volume.slice(index, offsets_mm)


OnBegin = Callable[[GrowingVolume], None]
"""Told of a volume that is about to be read."""
