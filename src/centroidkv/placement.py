"""What is placed into a prompt when passages are blended: the words of `reuse="blend"`.

Owns the values that the flow and the model exchange. Knows neither.
"""

from concurrent.futures import Future
from dataclasses import dataclass

from centroidkv.types import KVBlock

__all__ = ["BlendReport", "PlacedPassage"]


@dataclass(frozen=True, slots=True, eq=False)
class PlacedPassage:
    """Where in a prompt a passage's stored KV belongs.

    The tokens [start, stop) are absolute positions of the prompt; `block` has as many tokens, its
    keys are free of positions. Of a `Future`, the block may still be on its way: the first layers
    do not need it.
    """

    start: int
    stop: int
    block: KVBlock | Future[KVBlock]

    def loaded(self) -> KVBlock:
        """Return the block, waiting for it where it has to be.

        Raises:
            ValueError: It has another number of tokens.
        """
        block = self.block.result() if isinstance(self.block, Future) else self.block
        if block.num_tokens != self.stop - self.start:
            raise ValueError(
                f"a passage at [{self.start}, {self.stop}) has KV of {block.num_tokens} tokens"
            )
        return block


@dataclass(frozen=True, slots=True)
class BlendReport:
    """What a blend did.

    Attributes:
        placed_tokens: Tokens that passages brought KV for.
        again_tokens: Of these, how many were computed again, on the average of the layers from the
            check layer on.
        new_tokens: Tokens that no passage covered.
        uncorrected: How far the placed KV of the other tokens was from the fresh at the check
            layer, as a part of the fresh (both squared); None where nothing was compared.
    """

    placed_tokens: int
    again_tokens: int
    new_tokens: int
    uncorrected: float | None = None
