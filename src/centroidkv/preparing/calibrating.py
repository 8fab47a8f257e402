"""Calibrating a store: from labelled pairs of questions to thresholds that keep an error bound."""

import logging
from collections.abc import Sequence
from pathlib import Path

from centroidkv.errors import CacheError, StoreError
from centroidkv.files import forbidden, is_forbidden, make_folder, set_aside
from centroidkv.protocols import Embedder
from centroidkv.routing.calibration import Calibration, fit_calibration
from centroidkv.routing.labelled_pairs import LabelledPair, read_pairs
from centroidkv.store import Store

_log = logging.getLogger("centroidkv")

__all__ = ["Pairs", "calibrate", "calibration_of"]


Pairs = str | Path | Sequence[LabelledPair]


def calibrate(
    store: Store, embedder: Embedder, namespace: str, pairs: Pairs, *, past_pairs: Pairs = ()
) -> Calibration:
    """Fit a calibration to labelled pairs, or to a CSV file of them, and keep it in the store.

    See `fit_calibration` for what `past_pairs` add.

    Raises:
        ConfigError: The pairs cannot be used; the message names the line and the remedy.
        StoreError: The store is read-only, or the calibration in it belongs to somebody else.
    """
    store.require_writable("keep a calibration")
    path = _path(store, namespace)
    if is_forbidden(path):
        raise StoreError(str(forbidden(path)))
    fitted = fit_calibration(
        _rows(pairs),
        embedder.embed,
        embedder_fingerprint=embedder.fingerprint,
        past_pairs=_rows(past_pairs),
    )
    make_folder(path.parent)
    if calibration_of(store, embedder, namespace) is None:
        set_aside(path, store.path / "quarantine")
    fitted.save(path, store.vault)
    return fitted


def calibration_of(store: Store, embedder: Embedder, namespace: str) -> Calibration | None:
    """Return the calibration kept for an embedder and a tenant; a damaged one is none."""
    path = _path(store, namespace)
    if not path.exists():
        return None
    try:
        return Calibration.load(path, embedder_fingerprint=embedder.fingerprint, vault=store.vault)
    except CacheError as error:
        _log.warning("the calibration cannot be used, calibrate again: %s", error)
        return None


def _rows(pairs: Pairs) -> list[LabelledPair]:
    return read_pairs(pairs) if isinstance(pairs, (str, Path)) else list(pairs)


def _path(store: Store, namespace: str) -> Path:
    return store.path / "plans" / f"{namespace[-16:]}.calibration"
