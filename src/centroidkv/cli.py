"""The command line: build, ask, stats, check. Exit code 2 is a mistake of the user's."""

import argparse
import functools
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from centroidkv import __version__, cli_precision, cli_privacy, cli_versions
from centroidkv.cli_privacy import variable
from centroidkv.cli_versions import Console, measured
from centroidkv.config import EngineConfig
from centroidkv.engine import DEFAULT_EMBEDDER, DEFAULT_MODEL, Engine
from centroidkv.errors import CentroidKVError, ConfigError
from centroidkv.knowledge import (
    KnowledgeBase,
    read_domain_settings,
    read_passages,
    read_questions,
)
from centroidkv.maintenance import check_store, store_stats
from centroidkv.preparing.chat_logs import read_chat_log
from centroidkv.serving.closing import Terminated, interrupted_by_sigterm
from centroidkv.store import Store
from centroidkv.types import Message, Passage

__all__ = ["main"]

_SYSTEM = "Answer the question from the context, in one or two sentences."

_EXAMPLES = """examples:
  centroidkv build --questions past.csv --passages bank.jsonl --store ./kv-store
  centroidkv ask --store ./kv-store "How do I block a lost card?"
  centroidkv stats --store ./kv-store --json
  centroidkv check --store ./kv-store --repair
  centroidkv calibrate pairs.csv --store ./kv-store
"""
_ALL_EXAMPLES = _EXAMPLES + cli_versions.EXAMPLES + cli_precision.EXAMPLES + cli_privacy.EXAMPLES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _be_quiet()
    try:
        with interrupted_by_sigterm():
            return int(options.run(options))
    except CentroidKVError as error:
        print(f"centroidkv: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("centroidkv: interrupted; what was finished is kept", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _build(options: argparse.Namespace) -> int:
    # Read before the model is loaded, which takes longer than a typing error should.
    past = read_questions(options.questions) if options.questions else None
    log = options.chat_log
    turns = read_chat_log(log, column=options.chat_column) if log else None
    if past is None and turns is None:
        raise ConfigError("there is nothing to build from: give --questions, --chat-log or both")
    own = options.domain_settings
    settings = read_domain_settings(own) if own else None
    passages = read_passages(options.passages)
    with _open(options) as engine:
        base = KnowledgeBase(passages, engine.router.embedder)
        report = engine.build(
            questions=past.texts if past else None,
            domains=past.domains if past else None,
            chat_log=turns,
            domain_settings=settings,
            retriever=base,
            num_clusters=options.clusters,
            show_progress=not options.json,
        )
        base.save(engine.store.path, engine.store.vault)
        warmed = engine.warm(
            lambda q: _answer(engine, base, q, max_tokens=1), show_progress=not options.json
        )
        stats = engine.stats()
    _print(
        options,
        {**asdict(report), "warm": asdict(warmed), "store_bytes": stats.disk_bytes},
        f"{report.num_questions} questions in {report.num_clusters} clusters, "
        f"{warmed.filled + warmed.already_filled} filled, {stats.disk_bytes / 1e6:,.0f} MB "
        f"({report.seconds:.1f} s to build, {warmed.seconds:.1f} s to warm)",
    )
    return 0


def _ask(options: argparse.Namespace) -> int:
    with _open(options, create=False) as engine:
        base = _base_of(engine)
        done = _answer(
            engine,
            base,
            options.question,
            domain=options.domain,
            max_tokens=options.max_tokens,
            reuse=options.reuse,
        )
    usage = done.usage
    _print(
        options,
        {"text": done.text, "finish_reason": done.finish_reason, "usage": usage.as_dict()},
        f"{done.text.strip()}\n\n[{usage.outcome}: {usage.reason}; {usage.reused_tokens} of "
        f"{usage.prompt_tokens} prompt tokens reused; first token after "
        f"{usage.embed_s + usage.route_s + usage.ttft_s:.2f} s]",
    )
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    with _open(options, create=False) as engine:
        bounds = engine.calibrate(options.pairs, past_pairs=options.past_pairs or ())
    _print(
        options, {"bounds": [asdict(b) for b in bounds]}, "\n".join(str(bound) for bound in bounds)
    )
    return 0


def _stats(options: argparse.Namespace) -> int:
    config = EngineConfig(chroma=options.chroma, encryption_key=options.encryption_key)
    store = Store.open(options.store, config, create=False)
    try:
        found = store_stats(store)
    finally:
        store.close()
    stats = asdict(found)
    apart = ("counters", "figures", "codec_reports", "health")
    lines = [f"{n:22} {v}" for n, v in stats.items() if n not in apart]
    lines += [f"  {name:20} {value}" for name, value in stats["counters"].items()]
    lines += [f"{n:22} {v}" for n, v in (stats["health"] or {}).items()]
    lines += [f"plan {f.plan or 'none'}, {measured(f)}" for f in found.figures]
    lines += [cli_precision.levels_table(report) for report in found.codec_reports]
    _print(options, stats, "\n".join(lines))
    return 0


def _check(options: argparse.Namespace) -> int:
    config = EngineConfig(chroma=options.chroma, encryption_key=options.encryption_key)
    store = Store.open(options.store, config, create=False)
    try:
        report = check_store(store, repair=options.repair)
    finally:
        store.close()
    lines = [*report.problems, *(f"repaired: {r}" for r in report.repaired)]
    lines.append(
        f"{report.num_blocks} blocks, {report.num_plans} plans: {len(report.problems)} problems"
    )
    _print(options, {**asdict(report), "is_clean": report.is_clean}, "\n".join(lines))
    return 0 if report.is_clean or options.repair else 1


def _base_of(engine: Engine) -> KnowledgeBase:
    return KnowledgeBase.load(engine.store.path, engine.router.embedder, engine.store.vault)


def _answer(
    engine: Engine,
    base: KnowledgeBase,
    question: str,
    *,
    domain: str | None = None,
    **options: Any,
) -> Any:
    """Retrieve, render the command line's own prompt, answer."""
    route = engine.route(question, domain=domain)
    passages = engine.compose(route, base.search(question))
    return engine.generate(_render(passages, question), question=question, **options)


def _render(passages: Sequence[Passage], question: str) -> list[Message]:
    context = "\n\n".join(p.text for p in passages)
    return [
        Message("system", _SYSTEM),
        Message("user", f"Context:\n{context}\n\nQuestion: {question}"),
    ]


def _open(options: argparse.Namespace, *, create: bool = True) -> Engine:
    if not create:
        # Looked for before the model is loaded, which takes longer than a typing error should.
        config = EngineConfig(memory_budget_bytes=0, encryption_key=options.encryption_key)
        Store.open(options.store, config, create=False).close()
    return Engine.open(
        options.store,
        model=options.model,
        embedder=options.embedder,
        disk_budget_bytes=int(options.disk_budget_gb * (1 << 30)),
        kv_precision=options.kv_precision,
        chroma=options.chroma,
        remote=getattr(options, "remote", None),
        encryption_key=options.encryption_key,
        tenant_secret=getattr(options, "tenant_secret", None),
    )


def _print(options: argparse.Namespace, values: dict[str, Any], text: str) -> None:
    print(json.dumps(values, ensure_ascii=False) if options.json else text)


def _be_quiet() -> None:
    """Keep the libraries' own notes and bars off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("sentence_transformers", "transformers", "chromadb", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="centroidkv",
        description="Cluster-routed KV reuse: build a store from past questions, and use it.",
        epilog=_ALL_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = functools.partial(_command, commands)
    lines = _EXAMPLES.splitlines()
    build = command("build", _build, "cluster past questions and fill the store", lines[1].strip())
    _add_sources(build)
    ask = command("ask", _ask, "answer one question from a store", lines[2].strip())
    ask.add_argument("question")
    ask.add_argument("--domain", help="keep to the clusters of a domain; default: learnt")
    ask.add_argument("--max-tokens", type=int, default=64)
    ask.add_argument(
        "--reuse", default="exact", choices=["exact", "blend", "representative", "off"]
    )
    _add_chroma(command("stats", _stats, "print what a store holds", lines[3].strip()))
    check = command("check", _check, "verify every file of a store", lines[4].strip())
    check.add_argument("--repair", action="store_true", help="mend what can be mended")
    _add_chroma(check)
    teach = "learn when another question's answer may do"
    calibrate = command("calibrate", _calibrate, teach, lines[5].strip())
    _add_pairs(calibrate)
    for with_model in (build, ask, calibrate):
        _add_model(with_model)
    cli_versions.register(command, _console())
    cli_precision.register(command, _console())
    cli_privacy.register(command, _console())
    return parser


def _console() -> Console:
    """Return what the commands about plan versions need of this file."""
    return Console(
        open_engine=lambda options: _open(options, create=False),
        answer=lambda engine, base, question: _answer(engine, base, question, max_tokens=1),
        show=_print,
        add_model=_add_model,
    )


def _command(
    commands: Any, name: str, run: Any, text: str, example: str, *, needs_store: bool = True
) -> argparse.ArgumentParser:
    """Add a command with the options that all have."""
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run)
    added.add_argument("--store", type=Path, required=needs_store, help="the store folder")
    added.add_argument("--json", action="store_true", help="print JSON, for programs")
    added.add_argument(
        "--encryption-key", type=variable, help="of an encrypted store: env:NAME of a variable"
    )
    return added


def _add_sources(build: argparse.ArgumentParser) -> None:
    """Add what a store is built from."""
    build.add_argument("--questions", type=Path, help="CSV: question[,domain]")
    build.add_argument("--chat-log", type=Path, help="conversations: .tsv, .csv or .jsonl")
    build.add_argument("--chat-column", help="its column or key with the customer's text")
    build.add_argument("--passages", type=Path, required=True, help="JSON lines: id, text[, title]")
    build.add_argument("--clusters", type=int, default=None, help="default: a tenth as many")
    build.add_argument("--domain-settings", type=Path, help="JSON: settings by domain")


def _add_pairs(command: argparse.ArgumentParser) -> None:
    columns = "question_a,question_b,same_answer"
    command.add_argument("pairs", type=Path, help=f"CSV: {columns}")
    command.add_argument(
        "--past-pairs", type=Path, help="CSV of labelled pairs of past questions: serves more"
    )


def _add_model(command: argparse.ArgumentParser) -> None:
    """Add the options of every command that loads a model."""
    command.add_argument("--model", default=DEFAULT_MODEL, help="default: %(default)s")
    command.add_argument("--embedder", default=DEFAULT_EMBEDDER, help="default: %(default)s")
    _add_chroma(command)
    command.add_argument("--disk-budget-gb", type=float, default=20.0)
    command.add_argument("--kv-precision", default="raw", help="level; default: %(default)s")


def _add_chroma(command: argparse.ArgumentParser) -> None:
    where = "http://... of a shared Chroma server, or env:NAME; default: the store's own folder"
    command.add_argument("--chroma", help=where)
