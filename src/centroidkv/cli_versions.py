"""The command line's second half: refit, refresh, versions, and which of them serves.

`use`, `trial`, `promote` and `rollback` change the store's files alone and need no model; a
process that has the store open follows within a second.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from centroidkv.config import EngineConfig
from centroidkv.engine import Engine
from centroidkv.knowledge import KnowledgeBase, read_passages
from centroidkv.preparing.refit import RefitReport
from centroidkv.preparing.refreshing import RefreshReport
from centroidkv.store import Store
from centroidkv.versions.figures import Figures
from centroidkv.versions.in_force import Versions
from centroidkv.versions.listing import PlanVersion, plan_namespace_of

EXAMPLES = """  centroidkv refit --store ./kv-store --share 0.1
  centroidkv refresh --passages bank.jsonl --store ./kv-store
  centroidkv versions --store ./kv-store
  centroidkv use 3 --store ./kv-store
  centroidkv trial 4 --share 0.1 --store ./kv-store
  centroidkv promote --store ./kv-store
  centroidkv rollback --store ./kv-store
"""

Command: TypeAlias = Callable[[str, Any, str, str], argparse.ArgumentParser]

__all__ = ["EXAMPLES", "Console", "measured", "register"]


@dataclass(frozen=True, slots=True)
class Console:
    """What the commands share with the first half: opening, the prompt, printing."""

    open_engine: Callable[[argparse.Namespace], Engine]
    answer: Callable[[Engine, KnowledgeBase, str], Any]
    show: Callable[[argparse.Namespace, dict[str, Any], str], None]
    add_model: Callable[[argparse.ArgumentParser], None]


def register(command: Command, console: Console) -> None:
    """Add the commands to the parser that `command` makes parsers of."""
    examples = [line.strip() for line in EXAMPLES.splitlines()]

    def added(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        own = next(e for e in examples if e.split()[1] == name)
        return command(name, lambda options: run(console, options), text, own)

    refit = added("refit", _refit, "make the next plan version from the questions asked")
    refit.add_argument("--share", type=float, help="try it on this share instead of switching")
    refit.add_argument("--clusters", type=int, help="default: as the plan in force")
    refit.add_argument("--since-days", type=float, help="leave out questions not asked since")
    refresh = added("refresh", _refresh, "take over changed passages, and what depends on them")
    refresh.add_argument("--passages", type=Path, required=True, help="JSON lines: all of them")
    for with_model in (refit, refresh):
        console.add_model(with_model)
    added("versions", _versions, "list the plan versions with their figures")
    use = added("use", _use, "put a plan version in force")
    use.add_argument("version", type=int)
    trial = added("trial", _trial, "let a plan version serve a share of the questions")
    trial.add_argument("version", type=int, nargs="?", help="default: the newest")
    trial.add_argument("--share", type=float, default=0.1, help="default: %(default)s")
    added("promote", _promote, "put the version on trial in force")
    added("rollback", _rollback, "end the trial, or go back to the version before")


def _refit(console: Console, options: argparse.Namespace) -> int:
    settings = {"num_clusters": options.clusters} if options.clusters is not None else {}
    with console.open_engine(options) as engine:
        invoke, retriever = _own_chain(console, engine)
        report: RefitReport = engine.refit(
            invoke,
            retriever=retriever,
            since_days=options.since_days,
            share=options.share,
            show_progress=not options.json,
            **settings,
        )
    console.show(options, asdict(report), _refitted(report, options.share))
    return 0


def _own_chain(console: Console, engine: Engine) -> tuple[Any, Any]:
    """Return the command line's chain and retriever, where the store holds its passages."""
    if not KnowledgeBase.is_in(engine.store.path):
        return None, None
    kept = KnowledgeBase.load(engine.store.path, engine.router.embedder, engine.store.vault)
    return lambda q: console.answer(engine, kept, q), lambda q: kept.search(q, 16)


def _refitted(report: RefitReport, share: float | None) -> str:
    if not report.is_new:
        return f"version {report.version} is in force already: the questions give the same plan"
    first = (
        f"version {report.version}: {report.num_clusters} clusters of {report.num_questions} "
        f"questions, {report.num_new_questions} of them new ({report.seconds:.1f} s)"
    )
    lines = [first]
    if report.before is not None:
        lines.append(
            f"of the questions asked, admitted {report.before.admitted:.0%} -> "
            f"{report.after.admitted:.0%}, passages covered {report.before.covered:.0%} -> "
            f"{report.after.covered:.0%} (the new plan has seen them)"
        )
    served = "in force" if report.is_in_force else f"on trial with {share:.0%} of the questions"
    filled = "not warmed"
    if report.warm is not None:
        filled = f"{report.warm.filled + report.warm.already_filled} clusters filled"
    return "\n".join([*lines, f"{filled}; {served}"])


def _refresh(console: Console, options: argparse.Namespace) -> int:
    passages = read_passages(options.passages)
    with console.open_engine(options) as engine:
        base = KnowledgeBase(passages, engine.router.embedder)
        report: RefreshReport = engine.refresh(
            passages,
            lambda q: console.answer(engine, base, q),
            show_progress=not options.json,
        )
        base.save(engine.store.path, engine.store.vault)
    console.show(
        options,
        asdict(report),
        f"{report.replaced_passages} pinned passages replaced, {report.dropped_passages} dropped; "
        f"{len(report.changed_clusters)} clusters changed, {report.kept_clusters} kept as they "
        f"were; version {report.version} is in force ({report.seconds:.1f} s)",
    )
    return 0


def _versions(console: Console, options: argparse.Namespace) -> int:
    store = Store.open(
        options.store, EngineConfig(encryption_key=options.encryption_key), create=False
    )
    try:
        found = Versions(store, plan_namespace_of(store)).kept()
    finally:
        store.close()
    lines = [line for version in found for line in _described(version)]
    console.show(options, {"versions": [asdict(v) for v in found]}, "\n".join(lines))
    return 0


def _described(version: PlanVersion) -> list[str]:
    share = f" {version.share:.0%}" if version.share else ""
    line = (
        f"{version.version:4}  {version.state + share:14} {version.source:8} {version.made_at}  "
        f"{version.num_filled_clusters} of {version.num_clusters} clusters filled"
    )
    return [line, *(f"      {measured(f)}" for f in version.figures)]


def measured(figures: Figures) -> str:
    """Say in one line what the requests of a plan version and model cost."""
    return (
        f"model {figures.model[-8:]}: {figures.requests} requests, {figures.hits} hits, "
        f"{figures.partials} partial, {figures.misses} misses, {figures.reused_share:.0%} of "
        f"prompt tokens reused, first token {figures.ttft_p50_s * 1000:,.0f} ms (median)"
    )


def _use(console: Console, options: argparse.Namespace) -> int:
    return _switched(console, options, lambda versions: versions.use(options.version))


def _trial(console: Console, options: argparse.Namespace) -> int:
    share = options.share
    return _switched(console, options, lambda v: v.trial(options.version, share=share))


def _promote(console: Console, options: argparse.Namespace) -> int:
    return _switched(console, options, lambda versions: versions.promote())


def _rollback(console: Console, options: argparse.Namespace) -> int:
    return _switched(console, options, lambda versions: versions.rollback())


def _switched(
    console: Console, options: argparse.Namespace, switch: Callable[[Versions], object]
) -> int:
    store = Store.open(
        options.store, EngineConfig(encryption_key=options.encryption_key), create=False
    )
    try:
        versions = Versions(store, plan_namespace_of(store))
        switch(versions)
        pointer = versions.files.required()
    finally:
        store.close()
    tried = f", version {pointer.trial} serves {pointer.share:.0%}" if pointer.trial else ""
    console.show(options, asdict(pointer), f"version {pointer.in_force} is in force{tried}")
    return 0
