"""Words that forbid one answer for two questions: negations, opposites, numbers.

An embedder places "How do I enable X?" next to "How do I disable X?", so these differences are read
from the text, however alike the rest is. English only; knows no vector and no label.
"""

import re
from collections import Counter
from functools import lru_cache

__all__ = ["antonyms_differ", "conflict", "negations_differ", "numbers_differ", "stem", "words"]

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[a-z]+")
_SHORT = re.compile("\\b(ca|wo|sha)n['\u2019]?t\\b|n['\u2019]t\\b")
_BARE = re.compile(r"\b(do|does|did|is|are|was|were|has|have|had|could|would|should)nt\b")
_NEGATIONS = frozenset(
    [
        "not",
        "no",
        "never",
        "none",
        "nobody",
        "nothing",
        "nowhere",
        "neither",
        "nor",
        "without",
        "cannot",
        "unable",
        "hardly",
        "barely",
        "scarcely",
        "seldom",
        "rarely",
    ]
)
_SKIPPED = frozenset(
    [
        "a",
        "an",
        "the",
        "i",
        "my",
        "me",
        "we",
        "our",
        "you",
        "your",
        "it",
        "its",
        "this",
        "that",
        "to",
        "of",
        "do",
        "does",
        "did",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "has",
        "have",
        "had",
        "can",
        "could",
        "will",
        "would",
        "should",
        "yet",
        "any",
        "been",
        "still",
        "even",
        "at",
        "in",
        "on",
        "for",
    ]
)
_UNSAID = _SKIPPED | _NEGATIONS
_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non", "de", "mis")
# "one" is a pronoun more often than a number.
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ]
    )
    if value != 1
} | {"twenty": "20", "thirty": "30", "hundred": "100", "thousand": "1000"}
_HALF = frozenset(["hardly", "barely", "scarcely", "seldom", "rarely"])
# From this share of common words on, two texts are one and its variation.
_NEAR = 0.5
_OPPOSITES = """
enable disable, activate deactivate, open close, increase decrease, increase lower, raise lower,
send receive, sent received, before after, start stop, start end, begin end, add remove,
create delete, lock unlock, block unblock, freeze unfreeze, buy sell, bought sold, on off,
maximum minimum, max min, incoming outgoing, deposit withdraw, borrow lend, credit debit,
in out, into from, domestic foreign, domestic international, home abroad, more less, up down,
accept decline, accept reject, approve decline, approve reject, allow forbid, earliest latest,
first last, old new, physical virtual, temporary permanent, join leave, increase reduce,
upgrade downgrade, subscribe unsubscribe, always never, all none, early late, high low,
highest lowest, long short, pause resume, win lose, pass fail, succeed fail, same different,
partial full, small large, fixed variable, pay receive, switch keep, public private, with without,
all most, all some, many few, into out, only also, hot cold, sudden gradual
"""


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Strip the common endings of an English word, so that "closing" meets "closed"."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _table() -> dict[str, frozenset[str]]:
    table: dict[str, set[str]] = {}
    for pair in _OPPOSITES.split(","):
        one, other = (stem(w) for w in pair.split())
        table.setdefault(one, set()).add(other)
        table.setdefault(other, set()).add(one)
    return {word: frozenset(others) for word, others in table.items()}


_ANTONYMS = _table()


def words(text: str) -> list[str]:
    """Return the words and numbers of a text, lower case; "can't" becomes "ca", "not"."""
    plain = _SHORT.sub(lambda m: f"{m[1] or ''} not ", text.lower())
    return _WORD.findall(_BARE.sub(r"\1 not", plain))


def negations_differ(a: list[str], b: list[str]) -> bool:
    """Say whether two texts deny different things: another count, scope or strength."""
    return _scopes(a) != _scopes(b)


def antonyms_differ(a: list[str], b: list[str]) -> bool:
    """Say whether a word in only one text has its opposite in only the other."""
    mine, theirs = {stem(w) for w in a}, {stem(w) for w in b}
    alone, other = mine - theirs, theirs - mine
    return _prefixed(a, b) or any(_ANTONYMS.get(w, frozenset()) & other for w in alone)


def numbers_differ(a: list[str], b: list[str]) -> bool:
    """Say whether two texts name different numbers."""
    return _numbers(a) != _numbers(b)


def conflict(a: list[str], b: list[str]) -> str | None:
    """Name what forbids that one answer serves both texts, None if nothing is found.

    Negations and numbers forbid only where the rest is nearly the same: "my card does not work"
    and "the card is broken" may well have one answer, and the fitted score weighs them.
    """
    if antonyms_differ(a, b):
        return "opposite words"
    if not _near(a, b):
        return None
    if negations_differ(a, b):
        return "negation differs"
    return "numbers differ" if numbers_differ(a, b) else None


def _near(a: list[str], b: list[str]) -> bool:
    """Say whether most words that carry a meaning, negations aside, stand in both texts."""
    mine, theirs = ({stem(w) for w in t if w not in _UNSAID} for t in (a, b))
    return len(mine & theirs) >= _NEAR * len(mine | theirs)


def _scopes(tokens: list[str]) -> Counter[str]:
    """Count what follows each negation: the next word that carries a meaning."""
    found: Counter[str] = Counter()
    for place, word in enumerate(tokens):
        if word in _NEGATIONS:
            rest = (w for w in tokens[place + 1 :] if w not in _SKIPPED)
            found[f"{word in _HALF} {stem(next(rest, ''))}"] += 1
    return found


def _prefixed(a: list[str], b: list[str]) -> bool:
    mine, theirs = {stem(w) for w in a}, {stem(w) for w in b}
    return any(
        prefix + word in many
        for few, many in ((mine, theirs - mine), (theirs, mine - theirs))
        for word in few
        if len(word) >= 4
        for prefix in _PREFIXES
    )


def _numbers(tokens: list[str]) -> Counter[str]:
    return Counter(_NUMBERS.get(w, w) for w in tokens if w[0].isdigit() or w in _NUMBERS)
