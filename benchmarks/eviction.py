"""Which eviction policy keeps what will be asked for again: a production trace, no model.

Mooncake's conversation trace (Qin et al., FAST 2025) gives for each request the ids of its prompt's
512-token prefix blocks. What a request finds is its longest stored prefix; the rest is stored
behind it, and leaves by the product's own rule: leaves that no request is using, in the order of
the product's own policies. All blocks are of one size, as raw ones are. Hits are tokens, and apart
from them what computing them would have cost, since a token costs more the more there are before.

    python benchmarks/eviction.py [--data ../shared/data] [--requests 5719]
"""

import argparse
import hashlib
import heapq
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from machine import machine

from centroidkv.kv.policies import DOUBLING_TOKENS, POLICIES, Standing, order_of, worth

TOKENS = 512
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)  # of the bytes that all blocks of the trace would take


def requests(data: Path, count: int) -> list[list[int]]:
    """Return the prefix block ids of each request, in order."""
    path = data / "mooncake" / "conversation_first30min.jsonl"
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["hash_ids"] for line, _ in zip(file, range(count), strict=False)]


def chained(hash_ids: list[int]) -> list[str]:
    """Return an id for each block of a prompt, that of all before it and itself."""
    ids, parent = [], ""
    for number in hash_ids:
        parent = hashlib.sha256(f"{parent}/{number}".encode()).hexdigest()
        ids.append(parent)
    return ids


@dataclass(slots=True)
class Held:
    """A block that is held: how many blocks continue it, and where it stands."""

    parent: str
    depth: int
    children: int = 0
    standing: Standing = field(default_factory=lambda: Standing(0, 0, 0.0))


class Replay:
    """One policy under one budget of blocks."""

    def __init__(self, policy: str, most_blocks: int) -> None:
        self.policy, self.most = policy, most_blocks
        self.tokens = self.hit_tokens = 0
        self.cost = self.hit_cost = 0.0
        self._held: dict[str, Held] = {}
        self._leaves: list[tuple[tuple[float, ...], str]] = []  # those of before a use among them
        self._clock, self._age = 0, 0.0

    def ask(self, prompt: list[str]) -> None:
        """Find the longest stored prefix of a prompt, and store the rest."""
        self._clock += 1
        found = next((i for i, own in enumerate(prompt) if own not in self._held), len(prompt))
        costs = [TOKENS * (1 + i * TOKENS / DOUBLING_TOKENS) for i in range(len(prompt))]
        self.tokens += TOKENS * len(prompt)
        self.hit_tokens += TOKENS * found
        self.cost += sum(costs)
        self.hit_cost += sum(costs[:found])
        for own in prompt[:found]:
            self._use(own)
        for at in range(found, len(prompt)):
            if len(self._held) >= self.most and not self._evict(prompt):
                return
            parent = prompt[at - 1] if at else ""
            self._held[prompt[at]] = Held(parent, at * TOKENS)
            if at:
                self._held[parent].children += 1
            self._use(prompt[at])

    def _use(self, own: str) -> None:
        block = self._held[own]
        standing = block.standing
        standing.last_used, standing.uses = self._clock, standing.uses + 1
        standing.worth = worth(
            age=self._age, uses=standing.uses, depth_tokens=block.depth, tokens_per_byte=1.0
        )
        self._offer(own, block)

    def _offer(self, own: str, block: Held) -> None:
        heapq.heappush(self._leaves, (order_of(self.policy, block.standing), own))

    def _evict(self, prompt: list[str]) -> bool:
        """Let the first leaf of the policy's order go, but none of the request's own blocks."""
        in_use, passed = set(prompt), []
        while self._leaves:
            order, own = heapq.heappop(self._leaves)
            block = self._held.get(own)
            if block is None or block.children or order != order_of(self.policy, block.standing):
                continue
            if own in in_use:
                passed.append((order, own))
                continue
            self._age = max(self._age, block.standing.worth)
            del self._held[own]
            if block.parent:
                above = self._held[block.parent]
                above.children -= 1
                self._offer(block.parent, above)
            break
        else:
            own = ""
        for entry in passed:
            heapq.heappush(self._leaves, entry)
        return bool(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--requests", type=int, default=5719)
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
