"""Masks what looks personal in a text: numbers of cards, accounts and people, mails, phones, names.

Rules for English, and for what is written in digits in any language. What it cannot know it leaves:
addresses, and names that nothing announces. Knows no log and no store.
"""

import re
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Redact", "mask_personal"]

Redact: TypeAlias = Callable[[str], str]

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_SSN = re.compile(r"(?<![\w-])\d{3}[- ]\d{2}[- ]\d{4}(?![\w-])")
# Digits in groups, as cards, IBANs and accounts are written; a group of one or two needs company.
_GROUPED = re.compile(r"(?<![\w.,$€£])\d{2,}(?:[ -]\d{2,}){1,8}(?![\w])")
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\) ?|\d{2,4}[ .-])\d{3,4}[ .-]?\d{3,4}(?!\w)"
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_LONG = re.compile(r"(?<![$€£\d.,])\d{4,}(?![\d%])(?!\.\d)")
# What spreadsheets make of long numbers: 5.48E+16, or what is left of it without punctuation.
_SCIENTIFIC = re.compile(r"(?<![\w.])\d[\d.,]* ?e ?\+?\d{2}(?!\w)", re.IGNORECASE)
_ALONE = re.compile(r"\s*\d{3,}\s*")
_YEAR = re.compile(r"(?:19[5-9]|20[0-4])\d")
_AMOUNT = re.compile(
    r"[ ]?(?:dollars?|usd|eur|euros?|pounds?|gbp|bucks|inr|rs|won|krw)\b", re.IGNORECASE
)
_NUMBERED = re.compile(
    r"\b(?:ssn|social|card|acc?(?:oun)?t|a/?c|no|number|num|nos|digits?|ending|ends|pin|id)\b",
    re.IGNORECASE,
)
# Three digits are a number's rest only where the text says so.
_SHORT = re.compile(
    r"(\b(?:ssn|cvv|cvc|pin|card|account|digits?|ending)\b(?: (?:no|num|number|is|in|of|with|are))*"
    r"[ :]+)(\d{3})\b",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"(\b(?:my|the|full|first|last|nick|sur|his|her|our)[ -]?name(?:'?s| is| was)?[ :]+"
    r"|\bname(?: is|:| -)[ ]*|^ *name |\bmyself[ ])"
    r"((?!(?:is|on|and|not|to|of|in|for|with|or|but|has|was|change|changed|my)\b)[^\W\d_]+"
    r"(?: (?!(?:is|on|and|not|to|of|in|for|with|or|but|has|was|my|card|ssn|last|from)\b)"
    r"[^\W\d_]+)?)",
    re.IGNORECASE,
)


def mask_personal(text: str) -> str:
    """Replace what looks personal by a word in brackets, as `[card]` or `[name]`.

    Years and amounts with a currency stay, unless the text speaks of numbers of cards, accounts
    or people; an amount without a currency is masked from four digits on.
    """
    if _ALONE.fullmatch(text):
        return "[number]"
    text = _EMAIL.sub("[email]", text)
    text = _SCIENTIFIC.sub("[number]", text)
    text = _IBAN.sub(lambda m: "[account]" if sum(c.isdigit() for c in m[0]) > 7 else m[0], text)
    text = _SSN.sub("[ssn]", text)
    text = _GROUPED.sub(_card, text)
    text = _PHONE.sub("[phone]", text)
    text = _GROUPED.sub(_grouped, text)
    text = _SHORT.sub(r"\1[number]", text)
    speaks_of_numbers = bool(_NUMBERED.search(text))
    text = _LONG.sub(lambda m: _long(m, speaks_of_numbers=speaks_of_numbers), text)
    return _NAME.sub(r"\1[name]", text)


def _card(found: re.Match[str]) -> str:
    return "[card]" if sum(c.isdigit() for c in found[0]) >= 12 else found[0]


def _grouped(found: re.Match[str]) -> str:
    is_number = sum(c.isdigit() for c in found[0]) >= 7
    return "[number]" if is_number and not _AMOUNT.match(found.string, found.end()) else found[0]


def _long(found: re.Match[str], *, speaks_of_numbers: bool) -> str:
    digits = found[0]
    if _AMOUNT.match(found.string, found.end()) and len(digits) < 9:
        return digits
    if _YEAR.fullmatch(digits) and not speaks_of_numbers:
        return digits
    return "[card]" if 13 <= len(digits) <= 19 else "[number]"
