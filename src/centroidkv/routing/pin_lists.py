"""Which passages the clusters of a plan pin, within a budget of each and of all together.

Owns the trade between many lists and few: where the whole store is bounded, clusters share lists.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.clustering.nearest import nearest_centroid, without_gaps
from centroidkv.routing.pin_order import distinct_tokens, shared_order
from centroidkv.routing.pins import choose
from centroidkv.types import FloatArray

__all__ = ["Ballot", "pin_lists"]

ROUNDS = 8
TRIALS = 10
ROWS_AT_ONCE = 8192

Lists = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Ballot:
    """What the members of one cluster vote for, and the most passages and tokens it may pin."""

    votes: Mapping[str, float]
    max_pins: int
    max_tokens: int


def pin_lists(
    ballots: Sequence[Ballot],
    vectors: FloatArray,
    tokens: Mapping[str, int],
    *,
    store_tokens: int | None,
    seed: int = 0,
) -> Lists:
    """Return each cluster's pins, in an order that lengthens the prefixes they share.

    Each cluster pins what its members vote for. Where that takes more than `store_tokens` distinct
    tokens in all, the clusters share fewer lists, as many as fit: k-medians over the votes, in
    turn giving each cluster the list that holds most of its votes, and each list what its clusters
    vote for. A shared list obeys the strictest limits among its clusters.

    Args:
        ballots: One per cluster.
        vectors: The clusters' centroids, [clusters, reduced], by which they are first grouped.
        tokens: Tokens of each passage.
        store_tokens: The budget of all lists; None for any.
        seed: Of the first grouping.
    """
    popularity = _pooled([b.votes for b in ballots])
    most = store_tokens if store_tokens is not None else sys.maxsize
    own = shared_order([_chosen(b, tokens, most) for b in ballots], tokens, popularity)
    if distinct_tokens(own, tokens) <= most:
        return own
    sharing = _Sharing(ballots, vectors, tokens, most, seed)

    def shared(number: int) -> Lists:
        return shared_order(sharing.lists(number), tokens, popularity)

    return _most_that_fit(shared, len(set(own)), lambda lists: distinct_tokens(lists, tokens), most)


def _most_that_fit(
    shared: Callable[[int], Lists], high: int, size: Callable[[Lists], int], most: int
) -> Lists:
    """Look for the greatest number of lists, under `high`, whose size is within `most`.

    One list always fits. The size grows about linearly with the number, so the next guess is by
    the rule of three.
    """
    low, best, guess = 1, shared(1), max(high // 2, 1)
    for _ in range(TRIALS):
        if high - low <= max(1, low // 50):
            break
        lists = shared(guess)
        used = size(lists)
        if used <= most:
            low, best = guess, lists
        else:
            high = guess
        guess = min(max(guess * most // max(used, 1), low + 1), high - 1)
    return best


def _pooled(votes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for one in votes:
        for passage, weight in one.items():
            total[passage] += weight
    return dict(total)


def _chosen(ballot: Ballot, tokens: Mapping[str, int], most: int) -> list[str]:
    limit = min(ballot.max_tokens, most)
    return choose(ballot.votes, tokens, max_pins=ballot.max_pins, max_tokens=limit)


class _Sharing:
    """K-medians over the clusters' votes, for any number of lists."""

    def __init__(
        self,
        ballots: Sequence[Ballot],
        vectors: FloatArray,
        tokens: Mapping[str, int],
        most: int,
        seed: int,
    ) -> None:
        self._ballots, self._vectors, self._seed = ballots, vectors, seed
        self._tokens, self._most = tokens, most
        self._names = sorted({p for b in ballots for p in b.votes})
        self._columns = {p: i for i, p in enumerate(self._names)}
        self._votes = self._matrix([b.votes for b in ballots])

    def _matrix(self, rows: Sequence[Mapping[str, float]]) -> Any:
        """Return rows of passage -> number as a sparse matrix, [rows, passages]."""
        from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

        starts = np.cumsum([0, *map(len, rows)])
        columns = [self._columns[p] for row in rows for p in row]
        values = np.array([v for row in rows for v in row.values()], np.float64)
        return csr_matrix((values, columns, starts), shape=(len(rows), len(self._names)))

    def lists(self, number: int) -> list[list[str]]:
        """Return each cluster's list, of at most `number` different ones."""
        random = np.random.default_rng(self._seed)
        first = random.choice(len(self._vectors), number, replace=False)
        labels = without_gaps(nearest_centroid(self._vectors, self._vectors[first]))
        for _ in range(ROUNDS):
            now = self._nearest(self._lists_of(labels), labels)
            if (now == labels).all():
                break
            labels = np.unique(now, return_inverse=True)[1].astype(np.int64)
        lists = self._lists_of(labels)
        return [lists[label] for label in labels]

    def _lists_of(self, labels: NDArray[np.int64]) -> list[list[str]]:
        """Choose what each group votes for, under the strictest limits in it."""
        groups: list[list[Ballot]] = [[] for _ in range(int(labels.max()) + 1)]
        for label, ballot in zip(labels, self._ballots, strict=True):
            groups[label].append(ballot)
        pooled = (
            Ballot(
                _pooled(b.votes for b in group),
                min(b.max_pins for b in group),
                min(b.max_tokens for b in group),
            )
            for group in groups
        )
        return [_chosen(b, self._tokens, self._most) for b in pooled]

    def _nearest(self, lists: list[list[str]], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give each cluster the list that holds most of its votes; its own among equals."""
        held = self._matrix([dict.fromkeys(x, 1.0) for x in lists]).T.tocsc()
        parts = [
            _better((self._votes[i : i + ROWS_AT_ONCE] @ held).toarray(), labels[i:])
            for i in range(0, len(labels), ROWS_AT_ONCE)
        ]
        return np.concatenate(parts)


def _better(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    mine = labels[: len(scores)]
    is_better = scores.max(1) > scores[np.arange(len(mine)), mine] + 1e-9
    return np.where(is_better, scores.argmax(1), mine)
