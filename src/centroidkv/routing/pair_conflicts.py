"""Words that forbid one answer for two questions: negations, opposites, numbers, order.

An embedder places "How do I enable X?" next to "How do I disable X?", so these differences are read
from the text, however alike the rest is. English only; knows no vector and no label.
"""

import re
from collections import Counter
from functools import lru_cache

from centroidkv.routing.word_order import directions_differ, phrases_exchanged

__all__ = [
    "antonyms_differ",
    "conflict",
    "is_variation",
    "negations_differ",
    "numbers_differ",
    "stem",
    "words",
]

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[a-z]+")
_SHORT = re.compile("\\b(ca|wo|sha)n['\u2019]?t\\b|n['\u2019]t\\b")
_BARE = re.compile(r"\b(do|does|did|is|are|was|were|has|have|had|could|would|should)nt\b")


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEGATIONS = _listed(
    """not no never none nobody nothing nowhere neither nor without cannot unable hardly barely
    scarcely seldom rarely"""
)
_SKIPPED = _listed(
    """a an the i my me we our you your it its this that to of do does did is are was were be been
    has have had can could will would should yet any still even at in on for"""
)
# Verbs and the like that deny what they govern, and words that say how far a statement goes.
_POLARITY = _listed(
    """fail failed refuse refused refuses deny denied denies lack lacks lacked lacking doubt doubts
    doubted avoid avoids prevent prevents prevented forget forgot forgotten stop stopped unless
    except excluding instead almost nearly only mostly partly supposedly allegedly"""
)
_UNSAID = _SKIPPED | _NEGATIONS
_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non", "de", "mis")
_COUNTED = "zero one two three four five six seven eight nine ten eleven twelve"
# "one" is a pronoun more often than a number.
_NUMBERS = {word: str(value) for value, word in enumerate(_COUNTED.split()) if value != 1} | {
    "twenty": "20",
    "thirty": "30",
    "hundred": "100",
    "thousand": "1000",
}
_HALF = frozenset(["hardly", "barely", "scarcely", "seldom", "rarely"])
# From these shares of common words on, two texts are alike, or one and its variation.
_ALIKE = 0.5
_NEAR = 2 / 3
_ASKING = frozenset(["why", "how", "what", "when", "where", "who", "which"])
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
all most, all some, many few, into out, only also, hot cold, sudden gradual,
every some, everyone someone, everyone nobody, everything something, everything nothing,
something nothing, someone nobody, anything nothing, largest smallest, biggest smallest,
difficult easy, cheap expensive
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
    """Say whether two texts deny different things.

    They do if one denies more often, or more strongly, or what the other mentions without denying
    it ("not all", "all ... not"). "Not received" and "not arrived" may well mean the same, and in
    "Why isn't my card working?" the word order hides what is denied.
    """
    mine, theirs = _scopes(a), _scopes(b)
    if sorted(h for h, _ in mine.elements()) != sorted(h for h, _ in theirs.elements()):
        return True
    if _is_inverted(a) or _is_inverted(b):
        return False
    only_a, only_b = ({w for _, w in x} for x in (mine - theirs, theirs - mine))
    return bool(only_a & {stem(w) for w in b} or only_b & {stem(w) for w in a})


def _is_inverted(tokens: list[str]) -> bool:
    """Say whether a negation stands before its subject: "why is not my card", "is not my card"."""
    places = [i for i, word in enumerate(tokens) if word == "not"]
    return any(i == 1 or (i > 1 and tokens[i - 2] in _ASKING) for i in places)


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
    if phrases_exchanged(a, b):
        return "phrases exchanged"
    common = _common(a, b)
    if common >= _NEAR and (negations_differ(a, b) or _only_polarity_differs(a, b)):
        return "negation differs"
    if common >= _ALIKE and directions_differ(a, b, stem):
        return "direction differs"
    return "numbers differ" if common >= _ALIKE and numbers_differ(a, b) else None


def is_variation(a: list[str], b: list[str]) -> bool:
    """Say whether one text is nearly the other, but for a word or two."""
    return _common(a, b) >= _NEAR


def _only_polarity_differs(a: list[str], b: list[str]) -> bool:
    """Say whether all words of meaning in one text alone deny or limit, and there are some."""
    mine, theirs = ({w for w in t if w not in _SKIPPED} for t in (a, b))
    return bool(mine ^ theirs) and mine ^ theirs <= _POLARITY


def _common(a: list[str], b: list[str]) -> float:
    """Return the share of words that carry a meaning, negations aside, that stand in both texts."""
    mine, theirs = ({stem(w) for w in t if w not in _UNSAID} for t in (a, b))
    return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0


def _scopes(tokens: list[str]) -> Counter[tuple[bool, str]]:
    """Count what follows each negation, whole or half: the next word that carries a meaning."""
    found: Counter[tuple[bool, str]] = Counter()
    for place, word in enumerate(tokens):
        if word in _NEGATIONS:
            rest = (w for w in tokens[place + 1 :] if w not in _SKIPPED)
            found[word in _HALF, stem(next(rest, ""))] += 1
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
