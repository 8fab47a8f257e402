"""Sealing entries for places that others can read or write: AES-256-GCM.

The entry's name is bound in, so that no sealed entry can stand in for another. Knows nothing of
what is sealed.
"""

import os
from pathlib import Path

from centroidkv.errors import CacheCorrupt, CacheMismatch, MissingExtra

MARK = b"CKVSEAL1"
NONCE_BYTES = 12

__all__ = ["Sealer", "is_sealed"]


def is_sealed(raw: bytes) -> bool:
    """Tell whether bytes were sealed by a `Sealer`."""
    return raw.startswith(MARK)


class Sealer:
    """Seals and opens entries with one key of 32 bytes.

    Raises:
        MissingExtra: `cryptography` is not installed.
    """

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise MissingExtra(
                "cryptography", command="pip install 'centroidkv[remote]'"
            ) from error
        self._cipher = AESGCM(key)

    def seal(self, raw: bytes, name: str) -> bytes:
        """Return `raw` encrypted: mark, nonce, ciphertext with its tag."""
        nonce = os.urandom(NONCE_BYTES)
        return MARK + nonce + self._cipher.encrypt(nonce, raw, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Return what was sealed under this key and name.

        Raises:
            CacheMismatch: It was not sealed.
            CacheCorrupt: It was altered, cut off, or sealed under another key or name.
        """
        from cryptography.exceptions import InvalidTag

        if not is_sealed(sealed):
            raise CacheMismatch(name, expected="a sealed entry", found="one in the clear")
        start = len(MARK) + NONCE_BYTES
        try:
            return self._cipher.decrypt(sealed[len(MARK) : start], sealed[start:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise CacheCorrupt(Path(name), "altered, or sealed with another key") from error
