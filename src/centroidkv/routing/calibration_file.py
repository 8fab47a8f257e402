"""The file of a calibration: a checksummed header line, then an npz without pickle."""

import hashlib
import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.bounds import plain_json, read_arrays
from centroidkv.errors import CacheCorrupt, CacheMismatch
from centroidkv.files import forbidden
from centroidkv.routing.pair_features import PairScorer, WordWeights
from centroidkv.routing.pair_neighbours import PairNeighbours
from centroidkv.vault import IN_THE_CLEAR, Vault

__all__ = ["load_parts", "save_parts"]

_FORMAT = "centroidkv-calibration-2"
_MOST_BYTES = 1 << 32
_ARRAYS = [f.name for f in fields(PairScorer) if f.name not in ("words", "neighbours", "bias")]
_AROUND = {f"neighbours_{f.name}": f.name for f in fields(PairNeighbours)}


def save_parts(
    path: Path,
    scorer: PairScorer,
    scores: NDArray[np.float64],
    same: NDArray[np.bool_],
    *,
    fingerprint: str,
    vault: Vault = IN_THE_CLEAR,
) -> None:
    """Write a scorer and its held-out scores, whole or not at all."""
    values = {
        "fingerprint": fingerprint,
        "bias": scorer.bias,
        "unseen": scorer.words.unseen,
        "idf": dict(scorer.words.idf),
    }
    text = np.frombuffer(json.dumps(values, sort_keys=True).encode(), dtype=np.uint8)
    arrays: dict[str, Any] = {name: getattr(scorer, name) for name in _ARRAYS}
    arrays |= {key: getattr(scorer.neighbours, name) for key, name in _AROUND.items()}
    buffer = io.BytesIO()
    np.savez(buffer, values=text, scores=scores, same=same, **arrays)
    body = buffer.getvalue()
    vault.write(path, f"{_FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode(), body)


def load_parts(
    path: Path, *, fingerprint: str, vault: Vault = IN_THE_CLEAR
) -> tuple[PairScorer, NDArray[np.float64], NDArray[np.bool_]]:
    """Read what `save_parts` wrote.

    Raises:
        CacheCorrupt: The file is missing, truncated, altered or not a calibration.
        CacheMismatch: It is of another format or was fitted with another embedder.
    """
    body = _checked_body(path, vault)
    try:
        arrays = read_arrays(body)
        values = plain_json(arrays["values"].tobytes())
        found = values["fingerprint"]
        words = WordWeights(values["idf"], float(values["unseen"]))
        parts = {name: arrays[name] for name in _ARRAYS}
        around = PairNeighbours(**{name: arrays[key] for key, name in _AROUND.items()})
        scorer = PairScorer(words=words, neighbours=around, bias=float(values["bias"]), **parts)
        scores, same = arrays["scores"], arrays["same"]
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise CacheCorrupt(path, f"cannot be read: {error}") from error
    if found != fingerprint:
        raise CacheMismatch(f"embedder of {path}", expected=fingerprint, found=found)
    return scorer, scores, same


def _checked_body(path: Path, vault: Vault) -> bytes:
    try:
        header, _, body = vault.read(path, _MOST_BYTES).partition(b"\n")
    except PermissionError as error:
        raise forbidden(path) from error
    except OSError as error:
        raise CacheCorrupt(path, f"cannot be read: {error.strerror}") from error
    kind, _, digest = header.decode("ascii", "replace").partition(" ")
    if kind != _FORMAT:
        if kind.startswith("centroidkv-calibration-"):
            raise CacheMismatch(f"format of {path}", expected=_FORMAT, found=kind)
        raise CacheCorrupt(path, "not a calibration")
    if hashlib.sha256(body).hexdigest() != digest:
        raise CacheCorrupt(path, "the checksum does not match")
    return body
