"""The command line's part for privacy: what is held, forgetting it, and the key it lies under.

The first two need the model and the embedder that the store was built with: KV is searched as text.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from centroidkv.cli_versions import Command, Console
from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.files import write_atomic
from centroidkv.secret_keys import secret_bytes
from centroidkv.store_marker import change_key

EXAMPLES = """  centroidkv export --store ./kv-store --question "Is my card lost?" --out held.json
  centroidkv forget --store ./kv-store --question "Is my card lost?" --yes
  centroidkv rekey --store ./kv-store --encryption-key env:OLD_KEY --new-key env:NEW_KEY
"""

__all__ = ["EXAMPLES", "register", "variable"]


def variable(text: str) -> str:
    """Accept `env:NAME` alone: whoever lists processes would read a key on a command line."""
    if not text.startswith("env:") or text == "env:":
        raise argparse.ArgumentTypeError("give env:NAME of a variable that holds the key")
    return text


def register(command: Command, console: Console) -> None:
    """Add the commands to the parser that `command` makes parsers of."""
    first, second, third = (line.strip() for line in EXAMPLES.splitlines())
    export = command(
        "export",
        lambda options: _export(console, options),
        "write down what is held about a question, a passage or a tenant",
        first,
    )
    export.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    forget = command(
        "forget",
        lambda options: _forget(console, options),
        "remove a question, a passage, what is old, or all of a tenant",
        second,
    )
    forget.add_argument("--older-than-days", type=float, help="not stored or asked since")
    forget.add_argument("--everything", action="store_true", help="all that the tenant has")
    forget.add_argument("--yes", action="store_true", help="do not ask first")
    rekey = command("rekey", lambda o: _rekey(console, o), "open a store with another key", third)
    rekey.add_argument("--new-key", type=variable, required=True, help="env:NAME of a variable")
    for parser in (export, forget):
        parser.add_argument("--question")
        parser.add_argument("--passage", help="its id or its text")
        parser.add_argument("--tenant", default="", help="default: the one without a name")
        parser.add_argument("--remote", help="URL of the remote, if one is used")
        parser.add_argument(
            "--tenant-secret", type=variable, help="if one is used: env:NAME of a variable"
        )
        console.add_model(parser)


def _engine(options: argparse.Namespace, engine: Engine) -> Engine:
    return engine.for_tenant(options.tenant) if options.tenant else engine


def _export(console: Console, options: argparse.Namespace) -> int:
    with console.open_engine(options) as engine:
        found = _engine(options, engine).export(question=options.question, passage=options.passage)
    text = json.dumps(found.as_dict(), ensure_ascii=False, indent=1, default=str)
    write_atomic(options.out, text.encode("utf-8", "replace"))
    told = ", ".join(f"{count} in {place}" for place, count in found.counts.items()) or "nothing"
    lines = [f"{told}; written to {options.out}", *found.problems]
    values = {"counts": found.counts, "problems": list(found.problems), "out": str(options.out)}
    console.show(options, values, "\n".join(lines))
    return 1 if found.problems else 0


def _forget(console: Console, options: argparse.Namespace) -> int:
    days = options.older_than_days
    chosen: dict[str, Any] = {
        "question": options.question,
        "passage": options.passage,
        "older_than_s": None if days is None else days * 86400,
        "everything": options.everything,
    }
    if sum(value not in (None, False) for value in chosen.values()) != 1:
        raise ConfigError(
            "say what to forget: one of --question, --passage, --older-than-days or --everything"
        )
    if not options.yes:
        _require_yes(options)
    with console.open_engine(options) as engine:
        report = _engine(options, engine).forget(**chosen)
    told = ", ".join(f"{n} from {place}" for place, n in report.forgotten.items()) or "nothing"
    proof = "searched again, nothing is left" if report.is_proven else "NOT everything is forgotten"
    lines = [f"forgotten: {told}", f"{proof} ({report.seconds:.1f} s)", *report.problems]
    console.show(options, report.as_dict(), "\n".join(lines))
    return 0 if report.is_proven else 1


def _rekey(console: Console, options: argparse.Namespace) -> int:
    old = secret_bytes(options.encryption_key, "--encryption-key")
    new = secret_bytes(options.new_key, "--new-key")
    if old is None or new is None:
        raise ConfigError("give the key of now, too: --encryption-key env:NAME")
    change_key(options.store, old, new)
    text = (
        f"{options.store} opens with the new key; what it holds was not written again, and a "
        "remote without a key of its own begins anew"
    )
    console.show(options, {"store": str(options.store)}, text)
    return 0


def _require_yes(options: argparse.Namespace) -> None:
    """Ask whoever sits there.

    Raises:
        ConfigError: Nobody sits there, or it is not to be.
    """
    if not sys.stdin.isatty():
        raise ConfigError("forgetting cannot be undone; add --yes to go on without being asked")
    answer = input(f"Forget this for good from {options.store}? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was forgotten")
