"""Which places one engine's tenant has things in, and whose namespaces are whose."""

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from centroidkv.files import abandoned
from centroidkv.kv.holdings import Holdings, owner_of
from centroidkv.kv.owners import (
    are_keyed,
    has_sent,
    note_keyed,
    note_owner,
    num_damaged_owners,
    unowned,
)
from centroidkv.policies import Policies
from centroidkv.privacy.blocks import BlocksPlace
from centroidkv.privacy.expiry import Aged, Expiry
from centroidkv.privacy.files import (
    FiguresPlace,
    PassageFilePlace,
    UntoldPlace,
    files_set_aside,
)
from centroidkv.privacy.forget_log import ForgetLog
from centroidkv.privacy.forgetting import Privacy
from centroidkv.privacy.heads import HeadsPlace
from centroidkv.privacy.places import (
    AnswersPlace,
    ArenasPlace,
    DraftsPlace,
    HistoryPlace,
    RecordsPlace,
)
from centroidkv.privacy.plans import PlansPlace
from centroidkv.privacy.quiet import QuietTenants
from centroidkv.privacy.report import Place
from centroidkv.protocols import CausalModel
from centroidkv.routing.history import History
from centroidkv.routing.records import RecordRing
from centroidkv.routing.router import Router
from centroidkv.serving.learning import Learner
from centroidkv.store import Store
from centroidkv.versions.in_force import Versions

_log = logging.getLogger("centroidkv")

# So long may an opening take for tenants that ask nothing; the rest is done beside requests.
OPENING_S = 2.0

__all__ = ["finish_forgetting", "open_expiry", "open_privacy"]


def open_privacy(
    learner: Learner, model: CausalModel, records: RecordRing, policies: Policies
) -> Privacy:
    """Put the places of one engine together, in the order in which they are emptied.

    What leads to the rest goes first: a request that comes meanwhile finds less and less.
    """
    store = learner.store
    holdings = Holdings.of_tenant(store.blocks, store.config.tenant_key)
    blend = policies.blend
    others = partial(_other_heads, learner, holdings)
    places: list[Place] = [
        RecordsPlace(records),
        ArenasPlace(model, policies.exact.residence),
        HeadsPlace(blend.heads, blend.passages, model, holdings, others),
        PlansPlace(store, learner.versions, learner.router),
    ]
    if not store.read_only:
        _note(learner, model, owner_of(store.config.tenant_key))
        places += _of_other_embedders(learner, holdings)
        places += _kept_in_files(learner, model, holdings)
    places.append(BlocksPlace(holdings, model))

    def flush() -> None:
        policies.flush()
        store.writer.flush()

    log = ForgetLog(store.path, store.vault)
    return Privacy(store.config.tenant, places, log, flush, partial(_doubts, store))


def _doubts(store: Store) -> list[str]:
    """Say which settings are missing that the store was used with, and what was damaged."""
    manifest, found = store.blocks.disk.manifest, []
    if store.blocks.remote is None and has_sent(manifest):
        found.append(
            "KV of this store was sent to a remote that is not open; do it again with remote='...'"
        )
    if store.config.tenant_secret is None and are_keyed(manifest):
        found.append(
            "names of tenants are keyed in this store; do it again with tenant_secret='env:NAME'"
        )
    if num_damaged_owners(manifest) or unowned(manifest):
        found.append(
            "the manifest was damaged and does not tell whose some of the KV is; do it again after"
            " the store was open for every tenant and with every model that used it"
        )
    return found


def open_expiry(
    privacy: Privacy,
    learner: Learner,
    model: CausalModel,
    opened: Callable[[], Mapping[str, Expiry]],
) -> Expiry:
    """Return what keeps a tenant's `ttl_s`; of a read-only store nothing expires.

    With the engine that opened the store goes what keeps the `ttl_s` of all that are not `opened`.
    """
    store = learner.store
    ttl_s = None if store.read_only else store.config.ttl_s
    holdings = Holdings.of_tenant(store.blocks, store.config.tenant_key)
    expiry = Expiry(privacy, ttl_s, lambda: _aged(learner, holdings))
    if store.is_owner and not store.read_only:
        expiry.beside = QuietTenants(store, opened, partial(_privacy_of, learner, model))
        expiry.ends_beside = True
    return expiry


def finish_forgetting(privacy: Privacy, expiry: Expiry, store: Store) -> set[str]:
    """Go on where a forgetting was broken off; return the other tenants that have such.

    And let go of what is too old, of every tenant.
    """
    if store.read_only:
        return set()
    privacy.resume()
    expiry.look_at_own()
    quiet = expiry.beside
    if isinstance(quiet, QuietTenants):
        quiet.resume()
        quiet.sweep(OPENING_S)
    return privacy.others() if store.is_owner else set()


def _privacy_of(learner: Learner, model: CausalModel, owner: str, log: ForgetLog) -> Privacy:
    """Put together what an owner has whose engine is not open; nothing of it waits in memory."""
    store, holdings = learner.store, Holdings(learner.store.blocks, owner)
    places: list[Place] = [
        UntoldPlace("heads", partial(_other_heads, learner, holdings)),
        *_of_other_embedders(learner, holdings),
        AnswersPlace(store, holdings, model),
        DraftsPlace(store, holdings, model),
        BlocksPlace(holdings, model),
    ]
    return Privacy(owner, places, log, lambda: None)


def _aged(learner: Learner, holdings: Holdings) -> Iterator[Aged]:
    yield holdings
    if learner.history is not None:
        yield learner.history
    store = learner.store
    if (store.path / "answers.sqlite").exists():
        with contextlib.closing(store.open_answers(learner.versions.namespace)) as answers:
            yield answers
    if (store.path / "drafts.sqlite").exists():
        with contextlib.closing(store.open_drafts("")) as drafts:
            yield drafts


def _kept_in_files(learner: Learner, model: CausalModel, holdings: Holdings) -> list[Place]:
    store, folder = learner.store, learner.store.path
    places: list[Place] = []
    history = learner.history
    if history is not None:
        places.append(HistoryPlace(lambda: contextlib.nullcontext(history)))
    places.append(AnswersPlace(store, holdings, model))
    places.append(DraftsPlace(store, holdings, model))
    if learner.figures is not None:
        places.append(FiguresPlace(learner.figures, folder, holdings))
    if not learner.store.config.tenant:  # the command line's own, which knows no tenants
        places.append(PassageFilePlace(folder / "passages.jsonl", store.vault))
    quarantine = partial(files_set_aside, folder / "quarantine")
    places.append(UntoldPlace("quarantine", quarantine))
    places.append(UntoldPlace("unfinished", partial(abandoned, folder)))
    return places


def _of_other_embedders(learner: Learner, holdings: Holdings) -> list[Place]:
    """Return the plans and questions that the tenant has of other embedders than the engine's."""
    store = learner.store
    places: list[Place] = []
    for namespace, model in holdings.namespaces().items():
        if not model and namespace != learner.versions.namespace:
            unrouted = Router(learner.router.embedder, store.open_index)
            places.append(PlansPlace(store, Versions(store, namespace), unrouted))
            places.append(HistoryPlace(partial(_opened_history, store, namespace)))
    return places


def _opened_history(store: Store, namespace: str) -> AbstractContextManager[History]:
    return contextlib.closing(store.open_history(namespace))


def _other_heads(learner: Learner, holdings: Holdings) -> list[Path]:
    folder = learner.store.path / "heads"
    names = (f"{n[-16:]}.json" for n in holdings.namespaces() if n != learner.namespace)
    return [folder / name for name in names if (folder / name).exists()]


def _note(learner: Learner, model: CausalModel, owner: str) -> None:
    """Note whose this engine's namespaces are, for one that has another model or embedder."""
    manifest = learner.store.blocks.disk.manifest
    try:
        note_owner(manifest, learner.namespace, owner, model=model.fingerprint)
        note_owner(manifest, learner.versions.namespace, owner)
        if learner.store.config.tenant_secret is not None:
            note_keyed(manifest)
    except sqlite3.Error as error:
        _log.warning("the manifest could not note whose KV this is: %s", error)
