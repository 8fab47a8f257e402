"""How finely a block is kept: the levels, finest first, and who writes a block at one of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from centroidkv.errors import ConfigError
from centroidkv.kv.levels.port import CodedBlock, Level, Uncodable
from centroidkv.kv.levels.q3 import Q3
from centroidkv.kv.levels.q4 import Q4
from centroidkv.kv.levels.q5k4v import Q5K4V
from centroidkv.kv.levels.q8 import Q8
from centroidkv.kv.levels.raw import RAW_LEVEL
from centroidkv.rotary import Rotary
from centroidkv.types import KVBlock

__all__ = ["CODING", "LEVELS", "RAW", "BlockCoder", "CodedBlock", "decoded"]

_LEVELS: Mapping[str, Level] = {level.name: level for level in (RAW_LEVEL, Q8, Q5K4V, Q4, Q3)}
LEVELS: tuple[str, ...] = tuple(_LEVELS)
# What the levels lose, by name: their steps, and the rules around them. Raise the number when a
# level loses something else at the same steps, so that no report on the old one approves it.
_RULES = 1
CODING: str = hashlib.sha256(f"{_RULES} {[Q8, Q5K4V, Q4, Q3]}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class BlockCoder:
    """Writes blocks at a level; with `rotary`, of keys turned back to before their positions.

    Raises:
        ConfigError: There is no such level.
    """

    level: str
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        if self.level not in _LEVELS:
            raise ConfigError(f"no KV level {self.level!r}; there are {', '.join(LEVELS)}")

    def encode(self, block: KVBlock) -> CodedBlock:
        """Code a block; one that the level cannot hold within its bounds is kept raw."""
        try:
            return _LEVELS[self.level].encode(block, self.rotary)
        except Uncodable:
            return RAW_LEVEL.encode(block, None)


RAW = BlockCoder("raw")


def decoded(coded: CodedBlock) -> KVBlock:
    """Return the block that was coded.

    Raises:
        LookupError: This version does not know the level.
        ValueError: The parts are not those of a block of these shapes.
    """
    return _LEVELS[coded.level].decode(coded)
