"""Eviction policies as data: each is the order in which blocks leave.

The same words name columns of the manifest and fields of a `Standing`, so that disk and memory
order alike. What is pinned, in use or continued by another block is kept elsewhere.
"""

from dataclasses import dataclass

__all__ = ["POLICIES", "Standing", "order_of", "worth"]

# The first to leave has the least of the first word; among equals, of the next.
POLICIES: dict[str, tuple[str, ...]] = {
    "lru": ("last_used",),
    "lfu": ("uses", "last_used"),
    "cost": ("worth", "last_used"),
}
# Behind so many tokens one more costs twice what it does at the start, since it attends to all of
# them. Smaller models have less (SmolLM2-135M some 3,000), larger ones more (7B some 26,000).
DOUBLING_TOKENS = 8192


@dataclass(slots=True)
class Standing:
    """What a block's turn to leave depends on. `last_used` is a counter, not a clock."""

    last_used: int
    uses: int
    worth: float


def order_of(policy: str, standing: Standing) -> tuple[float, ...]:
    """Return a block's place in a policy's order; the least leaves first."""
    return tuple(getattr(standing, word) for word in POLICIES[policy])


def worth(*, age: float, uses: int, depth_tokens: int, tokens_per_byte: float) -> float:
    """Return what keeping a block is worth, in GreedyDual-Size-Frequency's terms.

    Uses times the cost of computing the block again, over its size, above the age of the store:
    the worth of what was evicted last. So what was used much long ago gives way in the end
    (Cherkasova, HP Labs technical report 98-69R1, 1998).
    """
    return age + uses * tokens_per_byte * (1 + depth_tokens / DOUBLING_TOKENS)
