"""What is held about a tenant, a question or a passage, and forgetting it: everywhere, provably.

1. write down what is to be forgotten   2. remove it from every place   3. rewrite the files
4. search every place again   5. strike it off

A kill between any two of these leaves the note of step 1, and the next opening goes on from it.
Knows places, and nothing of how any of them keeps what it holds.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from centroidkv.errors import CentroidKVError
from centroidkv.privacy.forget_log import ForgetLog, Intent
from centroidkv.privacy.report import Export, ForgetReport, Held, Place, count_by_place
from centroidkv.privacy.wanted import Wanted, plain

_log = logging.getLogger("centroidkv")

T = TypeVar("T")

# Places whose entries for a passage have its id as key.
_KNOW_TEXTS = ("records", "plans", "history", "passages")

__all__ = ["Privacy"]


class Privacy:
    """Finds and forgets what one engine's tenant left.

    Args:
        tenant: Whose it is.
        places: Where anything may be, in the order in which it is removed.
        log: Where forgettings under way are written down.
        flush: Waits until everything learnt so far is where it belongs.
        doubts: Says why there may be places that are not known here.
    """

    def __init__(
        self,
        tenant: str,
        places: Sequence[Place],
        log: ForgetLog,
        flush: Callable[[], None],
        doubts: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._tenant = tenant
        self._places = places
        self._log = log
        self._flush = flush
        self._doubts = doubts

    def export(self, wanted: Wanted) -> Export:
        """Return what is held; places that fail are named among the problems."""
        self._flush()
        wanted = self._settled(wanted)
        problems = self._unsearched(wanted)
        entries = self._search(wanted, problems)
        about = wanted.question or wanted.passage or "everything"
        return Export(self._tenant, about, tuple(entries), tuple(problems))

    def forget(self, wanted: Wanted) -> ForgetReport:
        """Remove what is wanted from every place, search again, and report."""
        with self._log.alone():
            self._flush()
            wanted = self._settled(wanted)
            report = self._carry_out(self._log.begin(self._tenant, wanted))
        # Not of the forgetting that is written down: to do it again would not tell more.
        return replace(report, problems=(*report.problems, *self._unsearched(wanted)))

    def expire(self, wanted: Wanted, *, rewrites: bool) -> bool:
        """Remove what is too old; tell whether there was any. Rewrites files if told to."""
        wanted = self._settled(wanted)
        is_any = rewrites or any(_tried(p, partial(p.find, wanted), []) for p in self._places)
        if is_any:
            with self._log.alone():
                self._flush()
                self._carry_out(self._log.begin(self._tenant, wanted), rewrites=rewrites)
        return is_any

    def others(self) -> set[str]:
        """Return the other tenants whose forgetting was broken off."""
        if not self._log.has_remains:
            return set()
        return {intent.tenant for intent in self._log.open_intents()} - {self._tenant}

    def resume(self) -> list[ForgetReport]:
        """Go on with forgettings of this tenant that were broken off."""
        if not self._log.has_remains:
            return []
        with self._log.alone():
            own = [i for i in self._log.open_intents() if i.tenant == self._tenant]
            return [self._carry_out(intent) for intent in own]

    def _carry_out(self, intent: Intent, *, rewrites: bool = True) -> ForgetReport:
        begin = time.perf_counter()
        wanted = intent.wanted
        problems: list[str] = []
        forgotten: dict[str, int] = {}
        for place in self._places:
            done = _tried(place, partial(place.forget, wanted), problems)
            if done:
                forgotten[place.name] = done
        for place in self._places if rewrites else ():
            rest = _tried(place, place.scrub, problems)
            if rest:
                problems.append(rest)
        left = count_by_place(self._search(wanted, problems))
        report = ForgetReport(
            self._tenant, forgotten, left, tuple(problems), time.perf_counter() - begin
        )
        if report.is_proven:
            self._log.end(intent)
        else:
            _log.warning(
                "not everything is forgotten yet (%s); it goes on when the store is opened next",
                "; ".join(problems) or f"left: {left}",
            )
        return report

    def _search(self, wanted: Wanted, problems: list[str]) -> list[Held]:
        found: list[Held] = []
        for place in self._places:
            found += _tried(place, partial(place.find, wanted), problems) or []
        return found

    def _unsearched(self, wanted: Wanted) -> list[str]:
        """Say what cannot be looked for, or not where it may be."""
        problems: list[str] = []
        if wanted.is_unknown_id:
            problems.append(f"passage id {wanted.passage} is not known here; give its text")
        try:
            problems += self._doubts()
        except sqlite3.Error as error:
            problems.append(f"the manifest cannot be read: {error}")
        return problems

    def _settled(self, wanted: Wanted) -> Wanted:
        """Add what has to be known before anything is removed: texts behind ids and ages."""
        texts = [p for p in self._places if p.name in _KNOW_TEXTS]
        found = [h for p in texts for h in _tried(p, partial(p.find, wanted), []) or []]
        if wanted.passage is not None:
            known = {held.text for held in found if held.key == wanted.passage and held.text}
            return replace(wanted, passage_texts=tuple(sorted(known)))
        if wanted.before_s is not None:
            old = {plain(held.text) for held in found if held.place == "history"}
            return replace(wanted, questions=tuple(sorted(old)))
        return wanted


def _tried(place: Place, work: Callable[[], T], problems: list[str]) -> T | None:
    """Run a step; what fails is a problem of its place and keeps no other place from its own."""
    try:
        return work()
    except (CentroidKVError, OSError, sqlite3.Error) as error:
        problems.append(f"{place.name}: {error}")
        return None
