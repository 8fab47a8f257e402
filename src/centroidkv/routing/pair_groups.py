"""Groups of questions that one answer serves, read from labelled pairs.

Correlation clustering, greedily: the two groups with the largest surplus of "same" over "different"
labels between them are merged, as long as there is a surplus. One wrong label therefore does not
join two large groups, as it would if linked questions were simply connected. Knows no vector.
"""

import heapq
from collections.abc import Sequence

from centroidkv.routing.labelled_pairs import LabelledPair

__all__ = ["group_questions"]

_Votes = list[dict[int, int]]


def group_questions(pairs: Sequence[LabelledPair]) -> dict[str, int]:
    """Return the group of each question, numbered from 0; deterministic."""
    texts = sorted({t for p in pairs for t in (p.question, p.candidate)})
    place = {text: i for i, text in enumerate(texts)}
    votes = _votes(pairs, place)
    parent = list(range(len(texts)))
    queue = [(-n, i, j) for i, row in enumerate(votes) for j, n in row.items() if i < j and n > 0]
    heapq.heapify(queue)
    while queue:
        surplus, i, j = heapq.heappop(queue)
        if votes[i].get(j) == -surplus:
            _merge(i, j, votes, parent, queue)
    roots = [_root(parent, i) for i in range(len(texts))]
    number = {root: n for n, root in enumerate(sorted(set(roots)))}
    return {text: number[root] for text, root in zip(texts, roots, strict=True)}


def _votes(pairs: Sequence[LabelledPair], place: dict[str, int]) -> _Votes:
    votes: _Votes = [{} for _ in place]
    for pair in pairs:
        i, j = place[pair.question], place[pair.candidate]
        if i != j:
            vote = 1 if pair.same_answer else -1
            votes[i][j] = votes[j][i] = votes[i].get(j, 0) + vote
    return votes


def _merge(
    i: int, j: int, votes: _Votes, parent: list[int], queue: list[tuple[int, int, int]]
) -> None:
    """Merge the group with fewer neighbours into the other and queue what changed."""
    kept, gone = (i, j) if len(votes[i]) >= len(votes[j]) else (j, i)
    parent[gone] = kept
    del votes[kept][gone]
    for other, count in votes[gone].items():
        if other == kept:
            continue
        del votes[other][gone]
        total = votes[kept].get(other, 0) + count
        votes[kept][other] = votes[other][kept] = total
        if total > 0:
            heapq.heappush(queue, (-total, min(kept, other), max(kept, other)))
    votes[gone] = {}


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
