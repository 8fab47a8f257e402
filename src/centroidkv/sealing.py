"""Sealing what others can read or write: AES-256-GCM for entries, AES-SIV for what is looked up.

The entry's name is bound in, so that no sealed entry can stand in for another. Knows nothing of
what is sealed.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from centroidkv.errors import CacheCorrupt, CacheMismatch, MissingExtra

MARK = b"CKVSEAL1"
NONCE_BYTES = 12
TAG_BYTES = 16
MOST_BYTES = (1 << 31) - 64
STEADY_KEY_BYTES = 64

__all__ = [
    "SEAL_BYTES",
    "STEADY_KEY_BYTES",
    "TAG_BYTES",
    "Sealer",
    "SteadySealer",
    "derived_key",
    "is_sealed",
]

SEAL_BYTES = len(MARK) + NONCE_BYTES + TAG_BYTES  # what sealing adds to an entry


def is_sealed(raw: bytes) -> bool:
    """Tell whether bytes were sealed by a `Sealer`."""
    return raw.startswith(MARK)


class Sealer:
    """Seals and opens entries with one key of 32 bytes.

    Raises:
        MissingExtra: `cryptography` is not installed.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = _ciphers().AESGCM(key)

    def seal(self, raw: bytes, name: str) -> bytes:
        """Return `raw` encrypted: mark, nonce, ciphertext with its tag.

        Raises:
            OSError: It has 2 GiB or more.
        """
        return b"".join(self.seal_in_parts(raw, name))

    def seal_in_parts(self, raw: bytes, name: str) -> tuple[bytes, bytes]:
        """Do as `seal`; return what stands before the ciphertext, and that."""
        if len(raw) > MOST_BYTES:
            raise OSError(errno.EFBIG, "more than can be sealed in one", name)
        nonce = os.urandom(NONCE_BYTES)
        return MARK + nonce, self._cipher.encrypt(nonce, raw, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Return what was sealed under this key and name.

        Raises:
            CacheMismatch: It was not sealed.
            CacheCorrupt: It was altered, cut off, or sealed under another key or name.
        """
        if not is_sealed(sealed):
            raise CacheMismatch(name, expected="a sealed entry", found="one in the clear")
        start = len(MARK) + NONCE_BYTES
        nonce, text = sealed[len(MARK) : start], memoryview(sealed)[start:]  # it may be large
        with _translated(name):
            raw: bytes = self._cipher.decrypt(nonce, text, name.encode())
        return raw


class SteadySealer:
    """Seals the same bytes to the same bytes, so that they can be looked up: AES-SIV, RFC 5297.

    The key has 64 bytes. Who sees two entries can tell whether they are equal, and nothing else of
    them but their length.

    Raises:
        MissingExtra: `cryptography` is not installed.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = _ciphers().AESSIV(key)

    def seal(self, raw: bytes, name: str) -> bytes:
        """Return `raw` encrypted: its tag, then as many bytes as it has."""
        sealed: bytes = self._cipher.encrypt(raw, [name.encode()])
        return sealed

    def open(self, sealed: bytes, name: str) -> bytes:
        """Return what was sealed under this key and name.

        Raises:
            CacheCorrupt: It was altered, cut off, or sealed under another key or name.
        """
        with _translated(name):
            raw: bytes = self._cipher.decrypt(sealed, [name.encode()])
        return raw


def derived_key(key: bytes, purpose: str, num_bytes: int = 32) -> bytes:
    """Derive the key of one purpose from another key: HKDF with SHA-256, RFC 5869.

    Raises:
        MissingExtra: `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise _missing() from error
    info = f"centroidkv {purpose}".encode()
    return HKDF(algorithm=SHA256(), length=num_bytes, salt=None, info=info).derive(key)


def _ciphers() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError as error:
        raise _missing() from error
    return aead


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what a cipher raises of an entry that does not open into an error of ours."""
    from cryptography.exceptions import InvalidTag

    try:
        yield
    except (InvalidTag, ValueError) as error:
        raise CacheCorrupt(Path(name), "altered, or sealed with another key") from error


def _missing() -> MissingExtra:
    return MissingExtra("cryptography", command="pip install 'centroidkv[encryption]'")
