"""Which KV precision an engine really uses: what was asked for, as far as it is approved.

A level that is not approved is left out, raw is what is left at the least: a setting never makes
answers worse than the codec report says.
"""

import logging
import sqlite3

from centroidkv.block_form import BlockForm
from centroidkv.kv.codec import CODING, BlockCoder
from centroidkv.precision.codec_report import read_report
from centroidkv.precision.levels import RAW_PRECISION, Precision, named_precision
from centroidkv.protocols import CausalModel
from centroidkv.store import Store

_log = logging.getLogger("centroidkv")

__all__ = ["open_namespace", "settled_precision"]


def open_namespace(store: Store, model: CausalModel) -> str:
    """Return the KV namespace of a model in a store, where new blocks are written as settled.

    Raises:
        ConfigError: The setting `kv_precision` names no level.
    """
    settled = settled_precision(store, model)
    namespace = settled.namespace(model.fingerprint, store.config.tenant_key)
    if settled.lossy:
        rotary = getattr(model, "rotary", None)
        coders = tuple(BlockCoder(level, rotary) for level in settled.levels)
        store.blocks.disk.coders[namespace] = coders[0]
        if store.blocks.uploads is not None:
            store.blocks.uploads.coders[namespace] = coders
    # A model that is not ours may not tell.
    form = getattr(getattr(model, "shape", None), "block_form", None)
    if isinstance(form, BlockForm):
        store.blocks.expect(namespace, form)
    return namespace


def settled_precision(store: Store, model: CausalModel) -> Precision:
    """Return what a store keeps a model's KV at; settled once for each time it is open.

    Raises:
        ConfigError: The setting names no level.
    """
    known = store.precisions.get(model.fingerprint)
    if known is None:
        asked = named_precision(store.config.kv_precision)
        known = store.precisions[model.fingerprint] = _approved(store, model, asked)
    return known


def _approved(store: Store, model: CausalModel, asked: Precision) -> Precision:
    if not asked.lossy:
        return asked
    report = read_report(store.path, model.fingerprint, coding=CODING)
    refused = [level for level in asked.lossy if report is None or not report.approves(level)]
    if not refused:
        return asked
    left = tuple(level for level in asked.levels if level not in refused)
    settled = Precision(left) if left else RAW_PRECISION
    why = "the model has no codec report" if report is None else "its codec report refuses that"
    _log.warning(
        "kv_precision=%r is not approved (%s: %s), KV is kept at %s; run: "
        "centroidkv codec-report --store %s",
        asked.name,
        ", ".join(refused),
        why,
        settled.name,
        store.path,
    )
    _count(store, len(refused))
    return settled


def _count(store: Store, times: int) -> None:
    if store.read_only:
        return
    try:
        store.blocks.disk.manifest.count(["unapproved_levels"] * times)
    except sqlite3.Error as error:
        _log.warning("the store cannot count: %s", error)
