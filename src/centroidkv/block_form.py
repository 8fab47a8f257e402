"""What every block of one model looks like, whoever wrote it: layers, heads, numbers, their type.

Held against a block before its KV is decoded and gets near a model. Knows no file and no model.
"""

from dataclasses import dataclass

from centroidkv.errors import CacheMismatch

__all__ = ["BlockForm"]

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BlockForm:
    """The form of a model's blocks: keys [layers, kv_heads, tokens, key_dim], values alike."""

    num_layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: str

    def require(
        self, shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: str, where: str
    ) -> None:
        """Refuse a block of another form.

        Args:
            shapes: Those of its keys and its values.
            dtype: That of its numbers, as the model has them.
            where: Names the block in the message.

        Raises:
            CacheMismatch: It is one; such a block was not written for this model.
        """
        found = " and ".join(f"{_without_tokens(s)}" for s in shapes) + f" {dtype}"
        heads = self.num_layers, self.kv_heads
        expected = f"{(*heads, self.key_dim)} and {(*heads, self.value_dim)} {self.dtype}"
        if found != expected:
            raise CacheMismatch(f"KV of {where}", expected=expected, found=found)

    def most_file_bytes(self, num_tokens: int) -> int:
        """Return what no file of so many tokens exceeds: twice the numbers, and a header."""
        numbers = self.num_layers * self.kv_heads * (self.key_dim + self.value_dim) * num_tokens
        return 2 * numbers * _ITEM_BYTES.get(self.dtype, 8) + _HEADER_BYTES


def _without_tokens(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *shape[3:])
