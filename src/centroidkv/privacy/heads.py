"""Heads as a place that holds texts, and with each the passages that were computed behind it.

Such a passage's KV has seen the head and its run-up, whose texts its own blocks do not spell: so
it goes with the head, and where nothing tells any more what its head was, with whatever is
forgotten. See `Place` for the contract.
"""

from collections.abc import Callable
from pathlib import Path

from centroidkv.blend.heads import Head, PromptHeads
from centroidkv.blend.passages import PassageStore
from centroidkv.kv.holdings import Holdings, Node
from centroidkv.models.detokenizing import text_of
from centroidkv.privacy.files import UntoldPlace
from centroidkv.privacy.report import Held
from centroidkv.privacy.wanted import Wanted
from centroidkv.protocols import CausalModel

__all__ = ["HeadsPlace"]


class HeadsPlace:
    """What prompts begin with, for passages that are blended; of other models, all of it goes."""

    name = "heads"

    def __init__(
        self,
        heads: PromptHeads,
        passages: PassageStore,
        model: CausalModel,
        holdings: Holdings,
        others: Callable[[], list[Path]],
    ) -> None:
        self._heads = heads
        self._passages = passages
        self._model = model
        self._holdings = holdings
        self._others = UntoldPlace(self.name, others)

    def find(self, wanted: Wanted) -> list[Held]:
        found = self._others.find(wanted)
        found += [
            Held(self.name, str(number), text_of(self._model, head.all_ids) or "")
            for number, head in enumerate(self._found(wanted))
        ]
        return found + [Held(self.name, node.id, "") for node in self._unknown(wanted)]

    def _found(self, wanted: Wanted) -> list[Head]:
        if wanted.before_s is not None:
            return self._heads.unused_since(wanted.before_s)
        return [head for head in self._heads.held() if self._holds(head, wanted)]

    def _holds(self, head: Head, wanted: Wanted) -> bool:
        texts = [text_of(self._model, ids) for ids in (head.token_ids, head.all_ids, *head.run_up)]
        if any(text is None or wanted.is_in(text) for text in texts):
            return True
        # A passage of a run-up may lack its ends.
        tests = (wanted.is_around, wanted.is_cut_off_in, wanted.is_continued_in)
        return any(test(text or "") for text in texts[2:] for test in tests)

    def forget(self, wanted: Wanted) -> int:
        """Let go of heads first: what is computed behind them meanwhile is not kept any more."""
        found = self._found(wanted)
        self._heads.forget(found)
        num_others = self._others.forget(wanted)
        unknown = self._unknown(wanted)
        if unknown:
            self._holdings.erase(unknown)
        return len(found) + num_others + len(unknown)

    def _unknown(self, wanted: Wanted) -> list[Node]:
        """Return passages that were computed behind a head that is not held now.

        Nothing tells what these have seen: the head is of another KV precision, or made way. Their
        age is their own, as of all KV.
        """
        if wanted.before_s is not None:
            return []
        known = {self._passages.root(head) for head in self._heads.known()}
        roots = self._holdings.derived() - known
        nodes = self._holdings.nodes(with_remote=True).values() if roots else ()
        return [node for node in nodes if node.namespace in roots]

    def scrub(self) -> str | None:
        return None
