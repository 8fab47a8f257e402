"""Word order that forbids one answer for two questions: the same words in exchanged roles.

"From savings to checking" and "from checking to savings" have the same words, and an embedder
hardly tells them apart. Most other reorderings of a question are harmless ("My card is lost, what
now?", "What now? My card is lost"), so only two forms count: two phrases that changed places
around words that relate them, and one word named as the source here and the target there.
English only; knows no vector and no label.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

__all__ = ["directions_differ", "phrases_exchanged"]

# Words around which an exchange says the same: "X is Y", "X and Y".
_SYMMETRIC = frozenset(["is", "are", "was", "were", "be", "been", "and", "or", "with", "as"])
# Words too light to be one of two exchanged phrases alone.
_LIGHT_WORDS = """
a an the i my me we our you your it its this that there do does did has have had can could will
would should may might must not no still please just also only yet so then now why how what when
where who which
"""
_LIGHT = _SYMMETRIC | frozenset(_LIGHT_WORDS.split())
_ARTICLES = frozenset(["a", "an", "the", "my", "our", "your", "please"])
_SOURCE = frozenset(["from"])
_TARGET = frozenset(["to", "into", "onto"])


def phrases_exchanged(a: Sequence[str], b: Sequence[str]) -> bool:
    """Say whether `b` is `a` with two phrases exchanged around a relation.

    `a` = head, one, relation, other, tail and `b` = head, other, relation, one, tail, articles
    aside; the relation is not symmetric, and each phrase has a word of its own.
    """
    one, other = (tuple(w for w in text if w not in _ARTICLES) for text in (a, b))
    if one == other or len(one) != len(other) or sorted(one) != sorted(other):
        return False
    while one[0] == other[0]:
        one, other = one[1:], other[1:]
    while one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    # What is left begins with the first phrase in `one` and ends with it in `other`.
    for size in range(1, len(one) - 1):
        first = one[:size]
        if other[-size:] == first and _is_phrase(first) and _is_exchange(one, other, size):
            return True
    return False


def _is_exchange(one: tuple[str, ...], other: tuple[str, ...], size: int) -> bool:
    rest, wanted = one[size:], other[:-size]
    for middle in range(1, len(rest)):
        relation, second = rest[:middle], rest[middle:]
        if (
            wanted == second + relation
            and _is_phrase(second)
            and not _SYMMETRIC.issuperset(relation)
        ):
            return True
    return False


def _is_phrase(tokens: Sequence[str]) -> bool:
    return any(word not in _LIGHT for word in tokens)


def directions_differ(a: Sequence[str], b: Sequence[str], stem: Callable[[str], str]) -> bool:
    """Say whether a word is the source in one text ("from X") and the target in the other."""
    from_a, to_a = _places(a, stem)
    from_b, to_b = _places(b, stem)
    return bool(from_a & to_b - to_a - from_b or to_a & from_b - from_a - to_b)


def _places(tokens: Sequence[str], stem: Callable[[str], str]) -> tuple[set[str], set[str]]:
    """Return what follows "from" and what follows "to", articles aside."""
    plain = [w for w in tokens if w not in _ARTICLES]
    source: set[str] = set()
    target: set[str] = set()
    for word, after in pairwise(plain):
        if after in _LIGHT:
            continue
        if word in _SOURCE:
            source.add(stem(after))
        elif word in _TARGET:
            target.add(stem(after))
    return source, target
