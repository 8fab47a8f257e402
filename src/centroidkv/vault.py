"""How what a store holds is written and read: in the clear, or sealed under the store's own key.

Every file and column with texts, token ids or KV goes through a vault, so that what reads and
writes them does not know which kind it is. Knows no format.
"""

from pathlib import Path

from centroidkv.bounds import read_bounded
from centroidkv.errors import CacheCorrupt
from centroidkv.files import write_atomic
from centroidkv.sealing import (
    SEAL_BYTES,
    STEADY_KEY_BYTES,
    TAG_BYTES,
    Sealer,
    SteadySealer,
    derived_key,
)

__all__ = ["IN_THE_CLEAR", "SealedVault", "Vault"]


class Vault:
    """Keeps everything in the clear."""

    is_sealed = False
    column_bytes = 0
    """What a column's value has more than what was put in."""
    digest_key = b""
    """Keys the digests of rows, so that only who has the key can make one that fits."""

    def write(self, path: Path, *parts: bytes | memoryview) -> int:
        """Write a file whole or not at all; return its bytes.

        Raises:
            OSError: It cannot be written.
        """
        write_atomic(path, *parts)
        return sum(len(part) for part in parts)

    def read(self, path: Path, most_bytes: int) -> bytes:
        """Read what was written into a file of that name, wherever it lies now.

        Raises:
            CacheError: It is not from this vault, or was altered.
            OSError: It cannot be read, or has more than `most_bytes`.
        """
        return read_bounded(path, most_bytes)

    def put(self, value: bytes, column: str) -> bytes:  # noqa: ARG002 - it seals nothing
        """Return how a value stands in a column; equal values stand there equally."""
        return value

    def take(self, value: object, column: str) -> bytes:
        """Return the value of a column.

        Raises:
            CacheCorrupt: It is not from this vault, or was altered.
        """
        if not isinstance(value, bytes):
            raise CacheCorrupt(Path(column), f"{type(value).__name__} instead of bytes")
        return value

    def put_text(self, text: str, column: str) -> str | bytes:  # noqa: ARG002 - as `put`
        """Do as `put` with a text."""
        return text

    def take_text(self, value: object, column: str) -> str:
        """Do as `take` with a text."""
        if not isinstance(value, str):
            raise CacheCorrupt(Path(column), f"{type(value).__name__} instead of text")
        return value


class SealedVault(Vault):
    """Seals everything under one key of 32 bytes.

    Raises:
        MissingExtra: `cryptography` is not installed.
    """

    is_sealed = True
    column_bytes = TAG_BYTES

    def __init__(self, key: bytes) -> None:
        self._files = Sealer(derived_key(key, "files"))
        self._columns = SteadySealer(derived_key(key, "rows", STEADY_KEY_BYTES))
        self.digest_key = derived_key(key, "digests")

    def write(self, path: Path, *parts: bytes | memoryview) -> int:
        return super().write(path, *self._files.seal_in_parts(b"".join(parts), path.name))

    def read(self, path: Path, most_bytes: int) -> bytes:
        sealed = read_bounded(path, most_bytes + SEAL_BYTES)
        try:
            return self._files.open(sealed, path.name)
        except CacheCorrupt as error:
            raise CacheCorrupt(path, "altered, or sealed with another key") from error

    def put(self, value: bytes, column: str) -> bytes:
        return self._columns.seal(value, column)

    def take(self, value: object, column: str) -> bytes:
        return self._columns.open(super().take(value, column), column)

    def put_text(self, text: str, column: str) -> bytes:
        return self.put(text.encode("utf-8", "surrogatepass"), column)

    def take_text(self, value: object, column: str) -> str:
        return self.take(value, column).decode("utf-8", "surrogatepass")


IN_THE_CLEAR = Vault()
