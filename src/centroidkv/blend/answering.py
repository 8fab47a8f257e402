"""Answering with passages' KV at any position: `reuse="blend"` (J. Yao et al., "CacheBlend").

1. find the passages in the prompt, and which are stored   2. exact prefix first, as ever
3. place what lies behind it, compute the rest   4. say what happened
5. behind the answer: compute passages that were not stored

What cannot be blended is answered exactly, and usage says why. Blended KV is never stored.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

from centroidkv.blend.filling import BlendFilling
from centroidkv.blend.gate import BlendGate
from centroidkv.blend.heads import PromptHeads
from centroidkv.blend.learning import PassageLearner, Shown
from centroidkv.blend.passages import BlendingModel, PassageStore
from centroidkv.blend.prefill import PassagePrefill, PassageReport
from centroidkv.blend.spans import PassageLayout, locate
from centroidkv.errors import BlendRefused
from centroidkv.progress import no_progress, progress_bar
from centroidkv.reasons import BlendProblem
from centroidkv.retrieval import as_invoke
from centroidkv.serving.answering import Answering
from centroidkv.serving.learning import Learner
from centroidkv.serving.question import end_of
from centroidkv.serving.request import Request, Run
from centroidkv.serving.warming import current_warming
from centroidkv.types import Chunk

__all__ = ["BlendAnswering"]


class BlendAnswering:
    """Answers requests whose policy is `blend`."""

    def __init__(self, answering: Answering, learner: Learner) -> None:
        store = learner.store
        self._answering = answering
        self._config = store.config
        self._store = store
        self._learner = learner
        self.passages = PassageStore(store.blocks, learner.namespace)
        path = store.path / "heads" / f"{learner.namespace[-16:]}.json"
        self.heads = PromptHeads(path, read_only=store.read_only, vault=store.vault)
        model = cast("BlendingModel", answering.model)  # the gate lets no other through
        self.passage_learner = PassageLearner(
            learner, model, self.passages, self.heads, residence=answering.residence
        )
        share = None if self._config.blend_share == "auto" else self._config.blend_share
        self._share = share
        self.gate = BlendGate(
            store.path / "gate", answering.model, share, read_only=store.read_only
        )

    # offline

    def prefill(
        self, invoke: Any, passages: Iterable[Any], *, show_progress: bool = False
    ) -> PassageReport:
        """Compute the passages of a knowledge base ahead: texts, documents or nodes.

        Can be interrupted and called again: what is stored is skipped.

        Raises:
            BlendRefused: The model may not blend.
            ConfigError: No passages, or not a chain.
            StoreError: The store is read-only.
        """
        self._store.require_writable("prefill passages")
        run = as_invoke(invoke, ("invoke", "query", "chat"))
        refusal = self.gate.refusal()
        if refusal is not None:
            raise BlendRefused(refusal.why)
        prefill = PassagePrefill(self._answering.model, self.passage_learner, self.heads)
        return prefill.run(run, passages, progress_bar() if show_progress else no_progress)

    # answering

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer piece by piece; the last chunk carries the completion."""
        run = self._answering.prepare(request)
        if current_warming() is not None:
            yield from self._answering.run(run)
            return
        layout = self._layout(run)
        refusal = self.gate.refusal() if layout.spans else None
        filling = self._filling(run, layout, refusal.problem if refusal else None)
        run.filling = filling
        for chunk in self._answering.run(run):
            # Only here, not where the garbage collector closes an answer that was left unread:
            # it may do so while this very thread holds the locks of what learns.
            if chunk.completion is not None and refusal is None and filling.unseen:
                self._learn(run, layout)
            yield chunk

    def _layout(self, run: Run) -> PassageLayout:
        question = run.question
        if not (run.request.question or (run.record and run.record.question)):
            question = end_of(question)
        texts = [p.text for p in run.record.passages] if run.record else []
        return locate(run.prompt, texts, question=question, marker=self._config.passage_marker)

    def _filling(
        self, run: Run, layout: PassageLayout, refused: BlendProblem | None
    ) -> BlendFilling:
        """Decide which passages of a prompt can be placed."""
        filling = BlendFilling(self.passages, self._share, self._learner.fault)
        filling.problem = refused or layout.problem
        if refused is not None or not layout.spans:
            return filling
        head = self.heads.find(run.prompt.token_ids[: layout.head])
        filling.look_up(run.prompt, layout, head)
        return filling

    def _learn(self, run: Run, layout: PassageLayout) -> None:
        if self._store.read_only or not self._config.blend_learns:
            return
        ids = run.prompt.token_ids
        most = len(ids) if run.storable_tokens is None else run.storable_tokens
        # All of them: those of the first prompt are the run-up. What is stored is passed over.
        units = [s.unit(ids) for s in layout.spans if s.stop <= most]
        if units:
            self.passage_learner.submit(Shown(ids[: layout.head], units))

    def flush(self) -> None:
        """Wait until the passages of all prompts answered so far are computed."""
        self.passage_learner.flush()

    def close(self) -> None:
        self.passage_learner.close()
