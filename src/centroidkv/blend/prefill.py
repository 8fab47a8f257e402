"""Offline: every passage of a knowledge base is computed once, behind the head of a user's chain.

Only the chain renders the very tokens, so it is run on the passages as a warming run is: its
prompt is taken, nothing is answered. Can be interrupted and run again: what is stored is skipped.
"""

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from centroidkv.blend.heads import RUN_UP_TOKENS, Head, PromptHeads
from centroidkv.blend.learning import PassageLearner, Shown
from centroidkv.blend.spans import locate
from centroidkv.errors import ConfigError
from centroidkv.protocols import CausalModel, Progress
from centroidkv.retrieval import as_passage
from centroidkv.serving.warming import WarmingRun, warming
from centroidkv.types import Cluster, Passage

# Passages rendered in one prompt. The last of one is the first of the next, since a passage's first
# token may be another one behind the head than behind a passage.
TOGETHER = 4
QUESTION = "What is this about?"

__all__ = ["PassagePrefill", "PassageReport"]


@dataclass(frozen=True, slots=True)
class PassageReport:
    """What prefilling did: passages stored now, stored before, and why the others were not."""

    num_passages: int
    stored: int
    already_stored: int
    problems: dict[str, int]
    stored_tokens: int
    seconds: float


class PassagePrefill:
    """Prefills the passages of one knowledge base for one chain."""

    def __init__(self, model: CausalModel, learner: PassageLearner, heads: PromptHeads) -> None:
        self._model = model
        self._learner = learner
        self._heads = heads
        self._counts: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()

    def run(
        self, invoke: Callable[[str], Any], passages: Iterable[Any], progress: Progress
    ) -> PassageReport:
        """Prefill passages: texts, documents or nodes.

        Raises:
            ConfigError: One is no passage, there are none, or the chain is async.
        """
        begin = time.perf_counter()
        given = [p for p in map(as_passage, passages) if p.text.strip()]
        known = {p.text.strip(): p for p in given}
        if not known:
            raise ConfigError("there are no passages to prefill; give those of the knowledge base")
        self._learner.note(given)
        waiting: list[Shown] = []
        for shown in self._shown(invoke, list(known.values()), progress):
            waiting.append(shown)
            is_known = self._heads.note(shown.before) is not None
            if is_known and _num_tokens(waiting) >= RUN_UP_TOKENS:
                self._fill(waiting)
        if waiting:
            self._heads.add(waiting[0].before)  # a single prompt: all of it before the passages
            self._fill(waiting)
        self._learner.finish()
        return PassageReport(
            num_passages=len(known),
            stored=self._counts["stored"],
            already_stored=self._counts["already"],
            problems=dict(self._problems),
            stored_tokens=self._counts["tokens"],
            seconds=time.perf_counter() - begin,
        )

    def _shown(
        self, invoke: Callable[[str], Any], passages: Sequence[Passage], progress: Progress
    ) -> Iterator[Shown]:
        fitting = [p for p in passages if self._fits(p)]
        for start in range(0, len(fitting), TOGETHER - 1):
            progress("prefill passages", start, len(fitting))
            together = fitting[max(0, start - 1) : start + TOGETHER - 1]
            shown = self._prompt_of(invoke, together)
            if shown is not None:
                yield shown
        progress("prefill passages", len(fitting), len(fitting))

    def _fits(self, passage: Passage) -> bool:
        # A prompt that is too long loses pins, and with them what is to be rendered.
        most = self._model.context_tokens // (TOGETHER + 1)
        if self._model.count_tokens(passage.text) <= most:
            return True
        self._problems[f"longer than {most} tokens, a fifth of the model's context"] += 1
        return False

    def _prompt_of(self, invoke: Callable[[str], Any], passages: Sequence[Passage]) -> Shown | None:
        """Let the chain render some passages."""
        run = WarmingRun(_nobodys_cluster(), list(passages))
        returned: Any = None  # as long as the run leaves the chain, nothing is
        try:
            with warming(run):
                returned = invoke(QUESTION)
        except Exception as error:  # noqa: BLE001 - it is the user's chain
            self._problems[f"the chain raised {type(error).__name__}: {error}"] += len(passages)
            return None
        if inspect.iscoroutine(returned):
            returned.close()
            raise ConfigError("the chain is async; give its sync form, as chain.invoke")
        if not run.prompts:
            self._problems["no prompt of the chain held the passages: is the retriever a "
                           "CentroidKVRetriever?"] += len(passages)  # fmt: skip
            return None
        prompt, _ = run.prompts[0]
        layout = locate(prompt, [p.text for p in passages], question=QUESTION)
        if layout.problem is not None:
            self._problems[layout.problem] += len(passages) - len(layout.spans)
        units = tuple(s.unit(prompt.token_ids) for s in layout.spans)
        return Shown(prompt.token_ids[: layout.head], units) if units else None

    def _fill(self, waiting: list[Shown]) -> None:
        behind: dict[Head, list[Shown]] = {}
        for shown in waiting:
            head = self._heads.find(shown.before)
            if head is None:
                self._problems["head_unseen"] += len(shown.units)
            else:
                behind.setdefault(head, []).append(shown)
        most = max(_num_tokens([shown]) for shown in waiting)
        for known, prompts in behind.items():
            passages = [u.token_ids for shown in prompts for u in shown.units]
            head = self._heads.with_run_up(known, passages, shown_tokens=most)
            if head is None:
                self._problems["head_unseen"] += len(passages)
                continue
            once = dict.fromkeys(passages)
            missing = [p for p in once if not self._learner.is_stored(head, p)]
            self._counts["already"] += len(once) - len(missing)
            self._counts["stored"] += len(missing)
            self._counts["tokens"] += self._learner.fill(head, missing)
            self._learner.fill_firsts(head, (u for shown in prompts for u in shown.firsts(head)))
        waiting.clear()


def _num_tokens(waiting: Sequence[Shown]) -> int:
    return sum(len(u.token_ids) for shown in waiting for u in shown.units)


def _nobodys_cluster() -> Cluster:
    return Cluster(-1, np.empty(0, np.float32), "", (), (), 0.0, 0)
