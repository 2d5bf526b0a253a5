"""From pairs that may be copies to groups that are: verify the nearest first, and only what still matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from cspine.audit.alignment import guess_placement
from cspine.audit.store import SignatureMap
from cspine.audit.verification import Match, match_pictures

Pair = tuple[int, int]

_BATCH = 64
_LOOK_AHEAD = 512
# Failed pairs after which a group is left alone.
_PATIENCE = 4
# Failed pairs after which two groups are taken for different.
_PATIENCE_WITH_ONE = 2
# Groups of this size and more are joined by one link only where it is this far above what is needed.
_LARGE, _CLEARLY = 3, 0.1


def verify_pair(signatures: SignatureMap, pair: Pair, *, zoom: bool) -> Match | None:
    """Compare two slices pixel by pixel.

    Args:
        signatures: Of all slices.
        pair: Two numbers in it.
        zoom: Look for another scale. None is returned where the same scale fits best: that is compared without.
    """
    first, second = pair
    guess = guess_placement(signatures.read_spectrum(first), signatures.read_spectrum(second), zoom=zoom)
    if zoom and guess.zoom_rings == 0:
        return None
    return match_pictures(signatures.read_picture(first), signatures.read_picture(second), guess)


class Linker:
    """Groups of `count` items, joined by verified pairs.

    Attributes:
        links: The pairs that joined groups, with what was found, in that order.
        compared: Pairs that were verified.
    """

    def __init__(self, count: int) -> None:
        self.links: list[tuple[Pair, Match]] = []
        self.compared = 0
        self._parent = list(range(count))
        self._patience_a_member = 0
        self._size = [1] * count
        self._failed = [0] * count
        self._failed_with: list[Counter[int]] = [Counter() for _ in range(count)]
        self._first_links: dict[Pair, tuple[Pair, Match]] = {}

    def find_group(self, item: int) -> int:
        """The number of an item's group: the same for all its members."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def link(
        self,
        pairs: npt.NDArray[np.integer],
        verify: Callable[[Pair], Match | None],
        pool: Executor,
        progress: Callable[[int, int], None] | None = None,
        *,
        patience_a_member: int,
    ) -> None:
        """Verify pairs in their order, except those that are in one group by then or in one that has failed enough.

        Within a batch, each group is in one pair only: so the result does not depend on the threads, and few pairs
        are verified that the batch itself makes needless.

        Args:
            pairs: (P, 2), the most promising first.
            verify: What a pair has in common, or None where it does not count; called from the pool's threads.
            pool: Where it is called.
            progress: Called as (pairs settled, pairs in all).
            patience_a_member: How many more failures a group may have for each member after its first. Failures of
                an earlier call do not count.
        """
        self._patience_a_member = patience_a_member
        self._failed = [0] * len(self._failed)
        self._failed_with = [Counter() for _ in self._failed_with]
        ahead: list[Pair] = []
        taken = 0
        while taken < len(pairs) or ahead:
            # As tuples only when their turn comes: millions of them would take many times the memory.
            fresh = [(one, other) for one, other in pairs[taken : taken + _LOOK_AHEAD - len(ahead)].tolist()]
            taken += len(fresh)
            batch, ahead = self._choose([*ahead, *fresh])
            for pair, match in zip(batch, pool.map(verify, batch), strict=True):
                self._settle(pair, match)
            if progress is not None:
                progress(taken - len(ahead), len(pairs))

    def _choose(self, waiting: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
        """The next batch, and the pairs that must wait for its results."""
        batch: list[Pair] = []
        later: list[Pair] = []
        busy: set[int] = set()
        for pair in waiting:
            groups = self._find_groups(pair)
            if groups[0] == groups[1] or not self._has_patience(groups):
                continue
            if not busy.isdisjoint(groups) or len(batch) == _BATCH:
                later.append(pair)
            else:
                batch.append(pair)
                busy.update(groups)
        return batch, later

    def _find_groups(self, pair: Pair) -> Pair:
        one, other = self.find_group(pair[0]), self.find_group(pair[1])
        return (one, other) if one < other else (other, one)

    def _has_patience(self, groups: Pair) -> bool:
        return self._failed_with[groups[0]][groups[1]] < _PATIENCE_WITH_ONE and all(
            self._failed[group] < _PATIENCE + self._patience_a_member * (self._size[group] - 1)
            for group in groups
        )

    def _settle(self, pair: Pair, match: Match | None) -> None:
        self.compared += match is not None
        groups = one, other = self._find_groups(pair)
        if match is None or not match.is_copy:
            self._failed[one] += 1
            self._failed[other] += 1
            self._failed_with[one][other] += 1
            self._failed_with[other][one] += 1
            return
        found = [(pair, match)]
        large = min(self._size[one], self._size[other]) >= _LARGE
        if large and match.correlation < match.needed + _CLEARLY:
            # One wrong link would make two families of many one: a second pair has to agree.
            known = self._first_links.setdefault(groups, (pair, match))
            if known[0] == pair:
                return
            found = [known, *found]
        self.links += found
        self._join(one, other)

    def _join(self, one: int, other: int) -> None:
        self._parent[other] = one
        self._size[one] += self._size[other]
        self._failed[one] += self._failed[other]
        for third, times in self._failed_with[other].items():
            self._failed_with[one][third] += times
            self._failed_with[third][one] += times
            del self._failed_with[third][other]
        self._failed_with[other].clear()
