"""One block, one file: the safetensors layout with a checksum over header and tensors.

Any safetensors reader opens the files. Ours reads the file in one go, bounds every size before
it allocates, and refuses what the checksum (xxh3-128) does not cover. Nothing is pickled.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from centroidkv.errors import CacheCorrupt, CacheMismatch
from centroidkv.files import write_atomic
from centroidkv.kv.blocks import pack, unpack
from centroidkv.rotary import Rotary, from_float32, to_float32
from centroidkv.types import KVBlock

FORMAT = "centroidkv-block-1"
MAX_HEADER_BYTES = 1 << 20

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_STORAGE: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "float64": np.float64,
}

# Stand-ins until the coded levels come: numbers rounded to so many bits of mantissa.
LEVELS: tuple[str, ...] = ("raw", "q8", "q4")
CODING = "stand-in"
_MANTISSA = {"q8": 7, "q4": 2}

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
]


@dataclass(frozen=True, slots=True)
class BlockCoder:
    """How blocks are written."""

    level: str
    rotary: Rotary | None = None

    def coded(self, block: KVBlock) -> KVBlock:
        bits = _MANTISSA.get(self.level)
        if bits is None:
            return block
        arrays = []
        for array in (block.keys, block.values):
            mantissa, exponent = np.frexp(to_float32(array, block.dtype))
            rounded = np.round(mantissa * (1 << bits)) / (1 << bits)
            arrays.append(from_float32(np.ldexp(rounded, exponent).astype(np.float32), block.dtype))
        return KVBlock(arrays[0], arrays[1], block.dtype)


RAW = BlockCoder("raw")


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block as read from its file, with all that the manifest can be rebuilt from."""

    id: str
    parent: str
    namespace: str
    token_ids: tuple[int, ...]
    block: KVBlock
    level: str = "raw"


def block_bytes(
    block: KVBlock,
    *,
    ids: tuple[str, str, str],
    token_ids: Sequence[int],
    coder: BlockCoder = RAW,
) -> bytes:
    """Return a block's file; `ids` are (id, parent, namespace)."""
    block = coder.coded(block)
    keys, values = np.ascontiguousarray(block.keys), np.ascontiguousarray(block.values)
    metadata = {
        "format": FORMAT,
        "id": ids[0],
        "parent": ids[1],
        "namespace": ids[2],
        "tokens": pack(token_ids).hex(),
        "dtype": block.dtype,
    }
    tensors = [("keys", keys), ("values", values)]
    if coder.level != "raw":
        metadata["level"] = coder.level
    metadata["xxh3"] = _digest(metadata, tensors)
    return _header(metadata, tensors) + keys.tobytes() + values.tobytes()


def save_block(
    path: Path,
    block: KVBlock,
    *,
    ids: tuple[str, str, str],
    token_ids: Sequence[int],
    coder: BlockCoder = RAW,
) -> int:
    """Write a block atomically. Return the file's bytes."""
    raw = block_bytes(block, ids=ids, token_ids=token_ids, coder=coder)
    write_atomic(path, raw)
    return len(raw)


def load_block(path: Path) -> StoredBlock:
    """Read and verify a block file.

    Raises:
        CacheCorrupt: The file is truncated, altered or not one of ours.
        CacheMismatch: The file was written by another format version.
        FileNotFoundError: There is no such file.
    """
    return parse_block(path.read_bytes(), str(path))


def parse_block(raw: bytes, where: str) -> StoredBlock:
    """Verify a block's file."""
    path = Path(where)
    try:
        return _parse(path, raw)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CacheCorrupt(path, f"not a readable block ({error})") from error


def _parse(path: Path, raw: bytes) -> StoredBlock:
    size = int.from_bytes(raw[:8], "little")
    if not 2 <= size <= min(MAX_HEADER_BYTES, len(raw) - 8):
        raise CacheCorrupt(path, "the header is cut off")
    header = json.loads(raw[8 : 8 + size])
    metadata: dict[str, str] = header["__metadata__"]
    if metadata.get("format") != FORMAT:
        raise CacheMismatch(str(path), expected=FORMAT, found=str(metadata.get("format")))
    data = memoryview(raw)[8 + size :]
    tensors = [(n, _tensor(header[n], metadata["dtype"], data)) for n in ("keys", "values")]
    # The checksum covers our metadata and the tensors; the header has one spelling only.
    is_ours = _header(metadata, tensors) == raw[: 8 + size]
    if not is_ours or len(data) != sum(array.nbytes for _, array in tensors):
        raise CacheCorrupt(path, "the header does not fit the tensors")
    expected = metadata.pop("xxh3")
    if _digest(metadata, tensors) != expected:
        raise CacheCorrupt(path, "the checksum does not match")
    block = KVBlock(tensors[0][1], tensors[1][1], metadata["dtype"])
    token_ids = unpack(bytes.fromhex(metadata["tokens"]))
    ids = metadata["id"], metadata["parent"], metadata["namespace"]
    return StoredBlock(*ids, token_ids, block, metadata.get("level", "raw"))


def _header(metadata: dict[str, str], tensors: list[tuple[str, NDArray[Any]]]) -> bytes:
    """Spell the header of a safetensors file: its length in eight bytes, then JSON, padded."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, array in tensors:
        end = offset + array.nbytes
        header[name] = {
            "dtype": _SAFETENSORS[metadata["dtype"]],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _tensor(entry: dict[str, Any], dtype: str, data: memoryview) -> NDArray[Any]:
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop <= len(data):
        raise ValueError("tensor outside the file")
    return np.frombuffer(data[start:stop], dtype=_STORAGE[dtype]).reshape(entry["shape"])


def _digest(metadata: dict[str, str], tensors: list[tuple[str, NDArray[Any]]]) -> str:
    hasher = xxhash.xxh3_128(json.dumps(metadata, sort_keys=True).encode())
    for name, array in tensors:
        hasher.update(f"{name}{array.shape}".encode())
        hasher.update(array.data)
    return hasher.hexdigest()
