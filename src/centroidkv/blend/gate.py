"""The gate: whether a model may blend, tried before it does so for the first time.

Blending changes logits, by how much depends on the model. What the trial found is kept in the
store under the model's fingerprint; below the bar the mode is refused, with the figures.
"""

import json
import logging
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from centroidkv.blend.gate_trial import GateFigures, GateTrial
from centroidkv.blend.passages import BlendingModel
from centroidkv.bounds import plain_json, read_bounded
from centroidkv.errors import BlendRefused
from centroidkv.files import set_aside, write_atomic
from centroidkv.fingerprint import fingerprint
from centroidkv.protocols import CausalModel
from centroidkv.reasons import BlendProblem

_log = logging.getLogger("centroidkv")

VERSION = "5"
# The bundled model is at 0.014 and 0.95; with keys turned to wrong positions, at 1.7 and 0.4.
MOST_KL, LEAST_AGREEMENT = 0.2, 0.8
_MOST_BYTES = 4096

__all__ = ["BlendGate", "Refusal"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model may not blend: what usage says, and what the log says."""

    problem: BlendProblem
    why: str


class BlendGate:
    """The gate of one store, one model and one share of recomputed tokens. Safe for many threads.

    Args:
        folder: Where figures are kept.
        model: Any model; one that does not blend is refused.
        share: The part of the placed tokens that is computed again, None for as few as suffice.
        read_only: Keep nothing.
    """

    def __init__(
        self, folder: Path, model: CausalModel, share: float | None, *, read_only: bool = False
    ) -> None:
        self._model = model
        self._share = share
        self._read_only = read_only
        self._path = folder / f"{fingerprint(VERSION, model.fingerprint, repr(share))[:32]}.json"
        self._refusal: Refusal | None = None
        self._is_tried = False
        self._lock = threading.Lock()

    def refusal(self) -> Refusal | None:
        """Say why the model may not blend, None if it may; the first trial takes some seconds."""
        with self._lock:
            if not self._is_tried:
                self._refusal = self._found()
                self._is_tried = True
                if self._refusal is not None:
                    _log.warning("reuse='blend' is answered exactly: %s", self._refusal.why)
            return self._refusal

    def require(self) -> None:
        """Try the model now.

        Raises:
            BlendRefused: Its blended prompts are too far from computed ones.
        """
        refusal = self.refusal()
        if refusal is not None and refusal.problem == "gate_failed":
            raise BlendRefused(refusal.why)

    def _found(self) -> Refusal | None:
        asked = getattr(self._model, "blend_problem", None)
        try:
            problem = asked() if asked is not None else "this kind of model does not blend"
            if problem is not None:
                return Refusal("model_unsupported", problem)
            figures = _read(self._path) or self._tried()
        except Exception as error:  # noqa: BLE001 - whatever an odd model raises, it is not blended
            return Refusal("model_unsupported", f"the model cannot be tried: {error}")
        if figures.kl <= MOST_KL and figures.agreement >= LEAST_AGREEMENT:
            return None
        return Refusal("gate_failed", _said(figures))

    def _tried(self) -> GateFigures:
        figures = GateTrial(cast("BlendingModel", self._model), self._share).run()
        _log.info("prompts were blended on trial: %s", _said(figures))
        if not self._read_only:
            try:
                set_aside(self._path, self._path.parent.parent / "quarantine")  # a damaged one
                write_atomic(self._path, json.dumps(asdict(figures)).encode())
            except OSError as error:
                _log.warning("the gate's figures could not be kept: %s", error)
        return figures


def _said(figures: GateFigures) -> str:
    return (
        f"the gate found KL {figures.kl:.3f} (at most {MOST_KL}) and agreement "
        f"{figures.agreement:.2f} (at least {LEAST_AGREEMENT}) over {figures.num_prompts} prompts"
    )


def _read(path: Path) -> GateFigures | None:
    try:
        found = plain_json(read_bounded(path, _MOST_BYTES))
        first, kl, agreement = (float(found[name]) for name in ("first_kl", "kl", "agreement"))
        counts = int(found["num_prompts"]), int(found["num_tokens"])
        return GateFigures(first, kl, agreement, *counts)
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError):
        return None  # tried again
