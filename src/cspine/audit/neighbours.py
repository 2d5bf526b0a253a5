"""Nearest neighbours among many vectors, in time that grows about linearly with their number.

A few random trees halve the vectors until a leaf is small; within a leaf all are compared. A neighbour that one tree
puts into another leaf is found by the next. A search in all pairs would be exact, and quadratic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_TREES = 4
_LEAF_SIZE = 1024
_QUERY_ROWS = 2048

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class NeighbourIndex:
    """Random trees over vectors (N, D) float32; the same vectors in the same order give the same trees."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._squares = np.einsum("nd,nd->n", vectors, vectors)
        self._random = np.random.default_rng(0)
        rows = np.arange(len(vectors))
        self._trees = [_Node(vectors, rows, self._random) for _ in range(_TREES)]

    def find_pairs(self, queries: Vectors, count: int, farthest: float) -> tuple[Rows, Vectors]:
        """Pair every query with up to `count` nearest vectors in each tree, none farther than `farthest`.

        Args:
            queries: (N, D), one for each vector of the index; a query is never paired with its own vector.
            count: At least 1.
            farthest: Euclidean distance.

        Returns:
            (P, 2) pairs of rows, the lower one first, each pair once; and their distances (P,), of the nearest try.
        """
        count_all = len(self._vectors)
        keys, distances = np.empty(0, np.int64), np.empty(0, np.float32)
        # Tree by tree: most pairs are found by several, and all of them at once would take the most memory of a search.
        for tree in self._trees:
            found = [
                self._compare(queries, asked, leaf, count, farthest)
                for asked, leaf in tree.assign(queries, np.arange(len(queries)))
            ]
            keys = np.concatenate([keys, *(pairs[:, 0] * count_all + pairs[:, 1] for pairs, _ in found)])
            distances = np.concatenate([distances, *(distance for _, distance in found)])
            order = np.lexsort((distances, keys))
            keys, distances = keys[order], distances[order]
            first = np.ones(len(keys), bool)
            first[1:] = keys[1:] != keys[:-1]
            keys, distances = keys[first], distances[first]
        return np.stack(np.divmod(keys, count_all), axis=1), distances

    def _compare(
        self, queries: Vectors, asked: Rows, leaf: Rows, count: int, farthest: float
    ) -> tuple[Rows, Vectors]:
        """The nearest of a leaf for each query that was assigned to it."""
        inside, squares = self._vectors[leaf], self._squares[leaf]
        pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
        for start in range(0, len(asked), _QUERY_ROWS):
            rows = asked[start : start + _QUERY_ROWS]
            some = queries[rows]
            square = squares - 2 * (some @ inside.T) + np.einsum("nd,nd->n", some, some)[:, None]
            square[rows[:, None] == leaf] = np.inf
            kept = min(count, len(leaf))
            near = np.argpartition(square, kept - 1, axis=1)[:, :kept]
            distance = np.sqrt(np.maximum(np.take_along_axis(square, near, axis=1), 0))
            from_row, slot = np.nonzero(distance <= farthest)
            pair = np.stack([rows[from_row], leaf[near[from_row, slot]]], axis=1)
            pairs.append(np.sort(pair, axis=1))
            distances.append(distance[from_row, slot])
        return np.concatenate(pairs), np.concatenate(distances)


class _Node:
    """A part of the vectors, cut in two at the median of a random direction until it is a leaf."""

    def __init__(self, vectors: Vectors, rows: Rows, random: np.random.Generator) -> None:
        self.rows = rows
        self.children: tuple[_Node, _Node] | None = None
        if len(rows) <= _LEAF_SIZE:
            return
        # Through two of the vectors: directions in which they are spread come up more often.
        one, other = random.choice(rows, 2, replace=False)
        self.direction = vectors[one] - vectors[other]
        along = vectors[rows] @ self.direction
        self.cut = float(np.median(along))
        low = along < self.cut
        if not 0 < low.sum() < len(rows):  # many equal vectors
            low = np.arange(len(rows)) < len(rows) // 2
        self.rows = rows[:0]
        self.children = (_Node(vectors, rows[low], random), _Node(vectors, rows[~low], random))

    def assign(self, queries: Vectors, asked: Rows) -> list[tuple[Rows, Rows]]:
        """Which queries come into which leaf: a list of (rows of the queries, rows in the leaf)."""
        if self.children is None:
            return [(asked, self.rows)]
        low = queries[asked] @ self.direction < self.cut
        parts = zip(self.children, (asked[low], asked[~low]), strict=True)
        return [pair for child, some in parts if len(some) for pair in child.assign(queries, some)]
