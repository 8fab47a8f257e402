"""What `reuse="blend"` finds for unseen questions, what many users gain, and what answers lose.

    python benchmarks/passages.py --part share [--data ../shared/data] [--cache FOLDER]
    python benchmarks/passages.py --part users [--quick]
    python benchmarks/passages.py --part ttft [--quick]
    python benchmarks/passages.py --part gate
    python benchmarks/passages.py --part quality --limit 100 --cache FOLDER

`share` runs no model. Questions of BANKING77 (3,000 past, 3,080 unseen by seed) retrieve the top 4
by MiniLM from two real knowledge bases; a passage's tokens count as reused where the very tokens of
its range in the prompt were those of a range in an earlier prompt. `users` lets eight users ask at
the same time over passages in an order never seen. `ttft` lets one ask, in full, exact and blended
by turns, with passages in memory and on disk. Both are for an idle machine; `--quick` shows that
they run, over a few passages, and keeps no figures. `quality` answers the text-span questions of
TAT-QA dev blended and in full; answers are kept, so that a run can be cut into pieces.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from machine import machine
from passages_gate import gate
from passages_quality import quality
from passages_share import share
from passages_ttft import ttft
from passages_users import users

PARTS: dict[str, Any] = {
    "share": share,
    "users": users,
    "ttft": ttft,
    "quality": quality,
    "gate": gate,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/passages"))
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--limit", type=int, default=None, help="so many questions at most")
    parser.add_argument("--quick", action="store_true", help="`users`, `ttft`: a few passages")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/passages.json"))
    given = parser.parse_args()
    kept: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    if given.quick:
        if given.part not in ("users", "ttft"):
            parser.error(f"--part {given.part} has no quick form")
        PARTS[given.part](given.data, given.cache, given.seed, given.limit, quick=True)
        return
    rows = PARTS[given.part](given.data, given.cache, given.seed, given.limit)
    kept[given.part] = {"machine": machine(), "rows": rows}
    given.out.write_text(json.dumps(kept, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
