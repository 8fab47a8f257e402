"""Random damage to every file of a store: nothing wrong is served, nothing crashes or hangs.

    python tests/stress/corruptions.py [--quick] [--rounds 10000] [--seed 1]

Each round copies a filled store, damages one file and opens it in a child, asks, and compares
with answers computed anew. Damage: flipped bits, a file cut short or made longer, a page of zeros,
two files of a kind exchanged, one written over another, one gone, one that is not ours, a
lock that is a folder. A store in the clear and an encrypted one take turns.
"""

import argparse
import collections
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from branches import Done, run
from filled_store import fill, wrong_answers
from stress_parts import SEALED, open_engine
from told import told

PAGE = 4096
CLEAR = ("StoreError", "StoreNotFound")
KINDS: list[dict[str, Any]] = [{}, SEALED]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 rounds")
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rounds = 60 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        counts, violations = damage_often(Path(folder), rounds, random.Random(options.seed))
    return told({"rounds": rounds, **counts}, violations)


def damage_often(
    folder: Path, rounds: int, chance: random.Random
) -> tuple[dict[str, int], list[str]]:
    """Damage copies of one store; return what was counted, and what must not be."""
    broken, filled = folder / "broken", []
    for number, settings in enumerate(KINDS):
        whole = folder / f"whole-{number}"
        filled.append(run(lambda w=whole, s=settings: fill(w, **s), timeout_s=120))
        if not filled[-1].is_well:
            return {}, [f"the store cannot be filled: {filled[-1]}"]
    counts: collections.Counter[str] = collections.Counter()
    violations = []
    for number in range(rounds):
        shutil.rmtree(broken, ignore_errors=True)
        which = number % len(KINDS)
        shutil.copytree(folder / f"whole-{which}", broken)
        path, harm = damage(broken, chance)
        log = folder / "child.log"
        log.unlink(missing_ok=True)
        done = run(lambda n=which: _look(broken, filled[n].value, KINDS[n]), log=log)
        counts[harm] += 1
        kind = _kind(done)
        counts[kind] += 1
        if kind in ("wrong", "crashed", "hung", "failed"):
            where = path.relative_to(broken)
            violations.append(f"round {number}: {harm} {where}: {done}\n{log.read_text()[-1500:]}")
    return dict(sorted(counts.items())), violations


def _look(path: Path, kept: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """Ask a damaged store; tell what is wrong, and whether the damage was noticed."""
    seen: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("centroidkv").addHandler(handler)
    wrong = wrong_answers(path, kept, **settings)
    with open_engine(path, **settings) as engine:
        problems = engine.check().problems
    return {"wrong": wrong, "is_noticed": bool(seen or problems)}


def _kind(done: Done) -> str:
    if done.is_hung:
        return "hung"
    if done.signal:
        return "crashed"
    if done.error:
        return "refused" if done.error.startswith(CLEAR) else "failed"
    if done.value["wrong"]:
        return "wrong"
    return "noticed" if done.value["is_noticed"] else "harmless"


def damage(folder: Path, chance: random.Random) -> tuple[Path, str]:
    """Damage one file of a store; kinds of files are hit alike, however many there are of each."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(_sort(path), []).append(path)
    alike = kinds[chance.choice(sorted(kinds))]
    path = chance.choice(alike)
    # What a lock file holds is nothing; that it can be locked is.
    harm = "a folder" if path.suffix == ".lock" else chance.choice(sorted(HARMS))
    (_folder if path.suffix == ".lock" else HARMS[harm])(path, alike, chance)
    return path, harm


def _sort(path: Path) -> str:
    return path.suffix if path.suffix in (".safetensors", ".plan", ".lock") else path.name


def _flip(path: Path, alike: list[Path], chance: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 8])):
        if raw:
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def _cut(path: Path, alike: list[Path], chance: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: chance.randrange(len(raw) + 1)])


def _lengthen(path: Path, alike: list[Path], chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randrange(1, 2 * PAGE)))


def _zeros(path: Path, alike: list[Path], chance: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    start = chance.randrange(len(raw) // PAGE + 1) * PAGE
    length = min(PAGE, len(raw) - start)
    raw[start : start + length] = bytes(length)
    path.write_bytes(raw)


def _swap(path: Path, alike: list[Path], chance: random.Random) -> None:
    other = chance.choice(alike)
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def _copy_over(path: Path, alike: list[Path], chance: random.Random) -> None:
    other = chance.choice([p for p in alike if p != path] or [path.parent / "store.json"])
    if other.exists():
        path.write_bytes(other.read_bytes())
    else:
        path.write_bytes(b"")


def _delete(path: Path, alike: list[Path], chance: random.Random) -> None:
    path.unlink()


def _folder(path: Path, alike: list[Path], chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _foreign(path: Path, alike: list[Path], chance: random.Random) -> None:
    path.write_bytes(chance.choice([b"", b"{}", b"hello", chance.randbytes(3000)]))


HARMS: dict[str, Callable[[Path, list[Path], random.Random], None]] = {
    "flipped": _flip,
    "cut": _cut,
    "lengthened": _lengthen,
    "zeroed": _zeros,
    "exchanged": _swap,
    "written over": _copy_over,
    "deleted": _delete,
    "foreign": _foreign,
}


if __name__ == "__main__":
    sys.exit(main())
