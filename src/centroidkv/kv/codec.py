"""One block, one file: the safetensors layout with a checksum over header and tensors.

Any safetensors reader opens the files. Ours reads the file in one go, bounds every size before
it allocates, and refuses what the checksum (xxh3-128) does not cover. Nothing is pickled. A raw
block's tensors are keys and values; those of another level are what the level makes of them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from centroidkv.block_form import BlockForm
from centroidkv.bounds import one_line
from centroidkv.errors import CacheCorrupt, CacheMismatch
from centroidkv.kv.blocks import pack, unpack
from centroidkv.kv.levels import CODING, LEVELS, RAW, BlockCoder, CodedBlock, decoded
from centroidkv.types import KVBlock
from centroidkv.vault import IN_THE_CLEAR, Vault

FORMAT = "centroidkv-block-1"
CODED_FORMAT = "centroidkv-coded-1"
MAX_HEADER_BYTES = 1 << 20
MAX_BLOCK_BYTES = 1 << 30

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_STORAGE: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F64": np.float64,
    "U32": np.uint32,
    "U8": np.uint8,
}
_ODD = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

__all__ = [
    "CODING",
    "LEVELS",
    "RAW",
    "BlockCoder",
    "StoredBlock",
    "block_bytes",
    "load_block",
    "parse_block",
    "save_block",
    "save_coded",
]


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block as read and verified, with all that the manifest can be rebuilt from.

    `where` names the file, for messages.
    """

    id: str
    parent: str
    namespace: str
    token_ids: tuple[int, ...]
    coded: CodedBlock
    where: str

    @property
    def level(self) -> str:
        return self.coded.level

    def require(self, form: BlockForm) -> None:
        """Refuse KV that is not of a model's form, before it is decoded.

        Raises:
            CacheMismatch: It is of another.
        """
        form.require((self.coded.key_shape, self.coded.value_shape), self.coded.dtype, self.where)

    @property
    def block(self) -> KVBlock:
        """The block, decoded now.

        Raises:
            CacheCorrupt: The bytes are not those of such a block, though their checksum holds.
        """
        try:
            return decoded(self.coded)
        except _ODD as error:
            raise CacheCorrupt(Path(self.where), f"it cannot be decoded ({error})") from error


def save_block(
    path: Path,
    block: KVBlock,
    *,
    ids: tuple[str, str, str],
    token_ids: Sequence[int],
    coder: BlockCoder = RAW,
    vault: Vault = IN_THE_CLEAR,
) -> int:
    """Write a block atomically; `ids` are (id, parent, namespace). Return the file's bytes."""
    return save_coded(path, coder.encode(block), ids=ids, token_ids=token_ids, vault=vault)


def save_coded(
    path: Path,
    coded: CodedBlock,
    *,
    ids: tuple[str, str, str],
    token_ids: Sequence[int],
    vault: Vault = IN_THE_CLEAR,
) -> int:
    """Do as `save_block` with a block that is coded already."""
    header, tensors = _spelled(coded, ids, token_ids)
    return vault.write(path, header, *(array.data.cast("B") for _, array in tensors))


def block_bytes(
    block: KVBlock,
    *,
    ids: tuple[str, str, str],
    token_ids: Sequence[int],
    coder: BlockCoder = RAW,
) -> bytes:
    """Return what `save_block` writes."""
    header, tensors = _spelled(coder.encode(block), ids, token_ids)
    return b"".join([header, *(array.tobytes() for _, array in tensors)])


def load_block(path: Path, vault: Vault = IN_THE_CLEAR) -> StoredBlock:
    """Read and verify a block file.

    Raises:
        CacheCorrupt: The file is truncated, altered or not one of ours.
        CacheMismatch: The file was written by another format version, or not into this vault.
        OSError: There is no such file, it cannot be read, or is larger than any block.
    """
    return parse_block(vault.read(path, MAX_BLOCK_BYTES), str(path))


def parse_block(raw: bytes, where: str) -> StoredBlock:
    """Verify the bytes of a block file; `where` names them in messages.

    Raises:
        CacheCorrupt: They are truncated, altered or not ours.
        CacheMismatch: They are of another format version, or of a level unknown here.
    """
    try:
        return _parse(where, raw)
    except _ODD as error:
        raise CacheCorrupt(Path(where), f"not a readable block ({one_line(str(error))})") from error


def _parse(where: str, raw: bytes) -> StoredBlock:
    size = int.from_bytes(raw[:8], "little")
    if not 2 <= size <= min(MAX_HEADER_BYTES, len(raw) - 8):
        raise CacheCorrupt(Path(where), "the header is cut off")
    header = json.loads(raw[8 : 8 + size])
    metadata: dict[str, str] = header["__metadata__"]
    level = _level(metadata, where)
    data = memoryview(raw)[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    tensors = [(name, _tensor(header[name], data)) for name in names]
    # The checksum covers our metadata and the tensors; the header has one spelling only.
    is_ours = _header(metadata, tensors) == raw[: 8 + size]
    if not is_ours or len(data) != sum(array.nbytes for _, array in tensors):
        raise CacheCorrupt(Path(where), "the header does not fit the tensors")
    expected = metadata.pop("xxh3")
    if _digest(metadata, tensors) != expected:
        raise CacheCorrupt(Path(where), "the checksum does not match")
    token_ids = unpack(bytes.fromhex(metadata["tokens"]))
    coded = _coded(level, metadata, dict(tensors))
    if not coded.key_shape[2] == coded.value_shape[2] == len(token_ids):
        raise CacheCorrupt(Path(where), "the KV is not that of its tokens")
    ids = metadata["id"], metadata["parent"], metadata["namespace"]
    return StoredBlock(*ids, token_ids, coded, where)


def _level(metadata: dict[str, str], where: str) -> str:
    """Return the level that a header names.

    Raises:
        CacheMismatch: The header is of another format, or the level is unknown here.
    """
    found = metadata.get("format")
    if found == FORMAT:
        return RAW.level
    if found != CODED_FORMAT:
        raise CacheMismatch(where, expected=FORMAT, found=one_line(str(found), 80))
    level = metadata["level"]
    if level not in LEVELS:
        raise CacheMismatch(
            where, expected=f"one of {', '.join(LEVELS)}", found=one_line(str(level), 80)
        )
    return level


def _spelled(
    coded: CodedBlock, ids: tuple[str, str, str], token_ids: Sequence[int]
) -> tuple[bytes, list[tuple[str, NDArray[Any]]]]:
    """Return a block file's header and its tensors."""
    is_raw = coded.level == RAW.level
    metadata = {
        "format": FORMAT if is_raw else CODED_FORMAT,
        "id": ids[0],
        "parent": ids[1],
        "namespace": ids[2],
        "tokens": pack(token_ids).hex(),
        "dtype": coded.dtype,
    }
    if not is_raw:
        metadata["level"] = coded.level
        metadata["shapes"] = json.dumps([coded.key_shape, coded.value_shape])
    tensors = list(coded.parts.items())
    metadata["xxh3"] = _digest(metadata, tensors)
    return _header(metadata, tensors), tensors


def _coded(level: str, metadata: dict[str, str], parts: dict[str, NDArray[Any]]) -> CodedBlock:
    if level == RAW.level:
        keys, values = parts["keys"], parts["values"]
        kind = _STORAGE[_SAFETENSORS[metadata["dtype"]]]
        if len(parts) != 2 or keys.dtype != kind or values.dtype != kind:
            raise ValueError("tensors of another type than the block's")
        return BlockCoder(level).encode(KVBlock(keys, values, metadata["dtype"]))
    keys, values = json.loads(metadata["shapes"])
    for shape in (keys, values):
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) > 1 << 40:
            raise ValueError("an odd shape")
    return CodedBlock(level, metadata["dtype"], tuple(keys), tuple(values), parts)


def _header(metadata: dict[str, str], tensors: list[tuple[str, NDArray[Any]]]) -> bytes:
    """Spell the header of a safetensors file: its length in eight bytes, then JSON, padded."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, array in tensors:
        end = offset + array.nbytes
        header[name] = {
            "dtype": _safetensors_type(array, metadata["dtype"]),
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _safetensors_type(array: NDArray[Any], dtype: str) -> str:
    """Name an array's type; arrays of two bytes or of the block's width are of the block's type."""
    own = _SAFETENSORS[dtype]
    if array.dtype == _STORAGE[own]:
        return own
    return next(name for name, kind in _STORAGE.items() if array.dtype == kind)


def _tensor(entry: dict[str, Any], data: memoryview) -> NDArray[Any]:
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop <= len(data):
        raise ValueError("tensor outside the file")
    return np.frombuffer(data[start:stop], dtype=_STORAGE[entry["dtype"]]).reshape(entry["shape"])


def _digest(metadata: dict[str, str], tensors: list[tuple[str, NDArray[Any]]]) -> str:
    hasher = xxhash.xxh3_128(json.dumps(metadata, sort_keys=True).encode())
    for name, array in tensors:
        hasher.update(f"{name}{array.shape}".encode())
        hasher.update(array.data)
    return hasher.hexdigest()
