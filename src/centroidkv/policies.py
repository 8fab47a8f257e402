"""The ways in which an engine answers, by the `reuse` of a request.

Owns which flow serves which policy, and what the flows share.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from centroidkv.approximation import ApproximateAnswering
from centroidkv.blend.answering import BlendAnswering
from centroidkv.models.detokenizing import forget_arenas
from centroidkv.preparing.calibrating import Pairs, calibrate, calibration_of
from centroidkv.protocols import CausalModel
from centroidkv.routing.records import RecordRing
from centroidkv.routing.risk import Bound
from centroidkv.serving.answering import Answering
from centroidkv.serving.learning import Learner
from centroidkv.serving.representative import Representatives
from centroidkv.serving.request import Request
from centroidkv.serving.watching import watched
from centroidkv.types import Chunk

__all__ = ["Policies"]


class Policies:
    """The flows of one engine. `exact` also serves `off`."""

    def __init__(self, model: CausalModel, records: RecordRing, learner: Learner) -> None:
        store = learner.store
        self._observer = store.observer
        self.exact = Answering(model, store.blocks, records, learner)
        self.representatives = Representatives(store, learner.router, learner.namespace)
        self._calibrated = (store, learner.router.embedder, learner.versions.namespace)
        self.representatives.calibration = calibration_of(*self._calibrated)
        self.representative = ApproximateAnswering(self.exact, self.representatives)
        self.blend = BlendAnswering(self.exact, learner)
        if store.config.reuse == "blend":
            self._require_gate(learner)

    def _require_gate(self, learner: Learner) -> None:
        try:
            self.blend.gate.require()
        except BaseException:  # there will be no engine to close
            self.close()
            learner.close()
            learner.store.close()
            raise

    def stream(self, request: Request, may_reuse: Callable[[], bool]) -> Iterator[Chunk]:
        """Answer piece by piece; the last chunk carries the completion.

        Whether what is stored may be used is asked when the first piece is, since letting go of
        what is too old takes time, which an event loop does not have.
        """
        return watched(self._observer, request, partial(self._answer, may_reuse))

    def _answer(self, may_reuse: Callable[[], bool], request: Request) -> Iterator[Chunk]:
        if not may_reuse():
            request = replace(request, reuse="off")
        yield from self._flow(request)

    def _flow(self, request: Request) -> Iterator[Chunk]:
        if request.reuse == "representative":
            return self.representative.stream(request)
        if request.reuse == "blend":
            return self.blend.stream(request)
        return self.exact.stream(request)

    def calibrate(self, pairs: Pairs, past_pairs: Pairs) -> list[Bound]:
        """Learn when a representative may serve under a bound; see `Engine.calibrate`."""
        fitted = calibrate(*self._calibrated, pairs, past_pairs=past_pairs)
        self.representatives.calibration = fitted
        return fitted.report()

    def flush(self) -> None:
        """Wait for what is computed behind the answers."""
        self.blend.flush()

    def close(self) -> None:
        """Finish what is computed behind the answers; close files.

        The model may serve other engines; it lets go of what this one's prompts left in it.
        """
        self.blend.close()
        self.representatives.close()
        forget_arenas(self.exact.model, self.exact.residence)
