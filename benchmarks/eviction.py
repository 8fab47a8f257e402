"""Which eviction policy keeps what will be asked for again: a production trace, no model.

Mooncake's conversation trace (Qin et al., FAST 2025) gives for each request the ids of its prompt's
512-token prefix blocks. Each is put through the product's own manifest as one block behind the one
before, and leaves by the product's own rule: unpinned leaves in the policy's order. What a request
finds is its longest stored prefix; what it does not is stored. Hits are tokens, and apart from them
what computing them would have cost, since a token costs more the more there are before it.

    python benchmarks/eviction.py [--data ../shared/data] [--requests 3000]
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

from machine import machine

from centroidkv.kv.blocks import namespace_id
from centroidkv.kv.eviction import Leases, leaves_to_evict
from centroidkv.kv.manifest import BlockRow, Manifest
from centroidkv.kv.policies import DOUBLING_TOKENS, POLICIES

TOKENS = 512
ROOT = namespace_id("eviction")
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)  # of the bytes that all blocks of the trace would take


def requests(data: Path, count: int) -> list[list[int]]:
    """Return the prefix block ids of each request, in order."""
    path = data / "mooncake" / "conversation_first30min.jsonl"
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["hash_ids"] for line, _ in zip(file, range(count), strict=False)]


def chained(hash_ids: list[int]) -> list[str]:
    """Return an id for each block of a prompt, that of all before it and itself."""
    ids, parent = [], ROOT
    for number in hash_ids:
        parent = hashlib.sha256(f"{parent}/{number}".encode()).hexdigest()
        ids.append(parent)
    return ids


class Replay:
    """One policy under one budget of blocks."""

    def __init__(self, policy: str, most_blocks: int) -> None:
        self.most = most_blocks
        self.tokens = self.hit_tokens = 0
        self.cost = self.hit_cost = 0.0
        self._manifest = Manifest(Path(":memory:"), policy=policy)
        self._held: set[str] = set()

    def ask(self, prompt: list[str]) -> None:
        found = 0
        while found < len(prompt) and prompt[found] in self._held:
            found += 1
        costs = [TOKENS * (1 + i * TOKENS / DOUBLING_TOKENS) for i in range(len(prompt))]
        self.tokens += TOKENS * len(prompt)
        self.hit_tokens += TOKENS * found
        self.cost += sum(costs)
        self.hit_cost += sum(costs[:found])
        self._manifest.touch(prompt[:found])
        for at in range(found, min(len(prompt), found + self._room(len(prompt) - found, prompt))):
            parent = prompt[at - 1] if at else ROOT
            self._manifest.add(BlockRow(prompt[at], parent, ROOT, (0,) * TOKENS, TOKENS))
            self._held.add(prompt[at])

    def _room(self, wanted: int, prompt: list[str]) -> int:
        """Evict for so many blocks, but none of the prompt's own; return how many have room."""
        leases = Leases()
        with leases.hold(prompt):
            while (excess := len(self._held) + wanted - self.most) > 0:
                leaves = leaves_to_evict(self._manifest, excess * TOKENS, leases)
                if not leaves:
                    break
                self._manifest.evict(leaves)
                self._held.difference_update(leaves)
        return self.most - len(self._held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/eviction.json"))
    options = parser.parse_args()
    prompts = [chained(ids) for ids in requests(options.data, options.requests)]
    num_blocks = len({own for prompt in prompts for own in prompt})
    print(f"{len(prompts)} requests, {num_blocks:,} different blocks of {TOKENS} tokens")
    rows = []
    for share in (*SHARES, 1.0):
        for policy in POLICIES if share < 1 else ("lru",):
            begin = time.perf_counter()
            replay = Replay(policy, max(1, int(share * num_blocks)))
            for prompt in prompts:
                replay.ask(prompt)
            row = {
                "budget_share": share,
                "policy": policy,
                "hit_tokens_share": round(replay.hit_tokens / replay.tokens, 4),
                "hit_cost_share": round(replay.hit_cost / replay.cost, 4),
            }
            rows.append(row)
            print(*row.values(), f"{time.perf_counter() - begin:.0f} s", flush=True)
    report = {"machine": machine(), "num_requests": len(prompts), "num_blocks": num_blocks}
    options.out.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
