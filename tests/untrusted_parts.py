"""Files as an attacker would write them: what reads each kind, and checksums made to fit again.

A `Target` is one kind of file: sound seeds, a reader that may only raise what it documents, and
`respelled`, which repairs the checksums of altered bytes so that alterations get past them. The
checksums are computed here from docs/on-disk-format.md, not by the package.
"""

import hashlib
import io
import json
import random
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from centroidkv.errors import CacheError, ConfigError
from centroidkv.knowledge import read_domain_settings, read_passages, read_questions
from centroidkv.kv.blocks import block_id, chain, namespace_id
from centroidkv.kv.codec import LEVELS, BlockCoder, block_bytes, parse_block
from centroidkv.kv.disk import DiskBlocks
from centroidkv.preparing.chat_logs import read_chat_log
from centroidkv.routing.labelled_pairs import read_pairs
from centroidkv.routing.plan import Plan, load_plan, save_plan
from centroidkv.routing.projection import Projection
from centroidkv.sealing import Sealer, is_sealed
from centroidkv.types import Cluster, KVBlock, Passage

ROOT = namespace_id("untrusted")
SEALER = Sealer(bytes(range(32)))
ENTRY = "aa/entry.raw"
ODD: Sequence[Any] = (
    None, True, -1, 0, 1, 63, 65, 1 << 31, 1 << 40, 1 << 64, -(1 << 63), 0.5, 1e308, "", "x",
    "../x", "raw", "q8", "F16", "BF16", "U8", [], [1, 2], [2, 2, 64, 4],
    [1 << 31] * 4, [-1, 2, 64, 4], {},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of file. `read` raises nothing but a fault of the package."""

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], None]
    respelled: Callable[[bytes, random.Random], bytes]


def small_block(num_tokens: int = 64, *, dtype: str = "float32") -> KVBlock:
    """One layer, one head, four numbers a key and a value: a file of some kilobytes."""
    random_ = np.random.default_rng(num_tokens)
    numbers = random_.standard_normal((2, 1, 1, num_tokens, 4))
    keys, values = numbers.astype(np.float16 if dtype == "float16" else np.float32)
    return KVBlock(keys, values, dtype)


def block_file(level: str = "raw", num_tokens: int = 64, *, dtype: str = "float32") -> bytes:
    """A sound block file."""
    tokens = tuple(range(num_tokens))
    ids = block_id(ROOT, tokens), ROOT, ROOT
    block = small_block(num_tokens, dtype=dtype)
    return block_bytes(block, ids=ids, token_ids=tokens, coder=BlockCoder(level))


# blocks


def read_block(raw: bytes) -> None:
    """Unseal, parse and decode; what comes out is no larger than its bytes warrant."""
    try:
        if is_sealed(raw):
            raw = SEALER.open(raw, ENTRY)
        found = parse_block(raw, "a file").block
    except CacheError:
        return
    assert found.num_bytes <= 4 * 256 * len(raw), "more memory than the bytes warrant"
    assert found.keys.shape[2] == found.values.shape[2]


def respelled_block(raw: bytes, random_: random.Random) -> bytes:
    """Change a field of the header at times, and let header and checksum fit the tensors."""
    size = int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8 : 8 + size])
        metadata = header.pop("__metadata__")
        changed: list[dict[str, Any]] = [metadata, *header.values()]
        if random_.random() < 0.5:
            chosen = random_.choice(changed)
            chosen[random_.choice(list(chosen))] = random_.choice(ODD)
        return with_checksum(metadata, header, raw[8 + size :])
    except Exception:  # noqa: BLE001 - too broken to be repaired: it is tried as it is
        return raw


def with_checksum(metadata: dict[str, Any], tensors: dict[str, Any], body: bytes) -> bytes:
    """Return a block file of these parts whose checksum fits, as docs/on-disk-format.md has it."""
    metadata = {k: v for k, v in metadata.items() if k != "xxh3"}
    hasher = xxhash.xxh3_128(json.dumps(metadata, sort_keys=True).encode())
    for name, entry in tensors.items():
        start, stop = entry["data_offsets"]
        hasher.update(f"{name}{tuple(entry['shape'])}".encode() + body[start:stop])
    header = {"__metadata__": {**metadata, "xxh3": hasher.hexdigest()}, **tensors}
    spelled = json.dumps(header, separators=(",", ":")).encode()
    spelled += b" " * (-len(spelled) % 8)
    return len(spelled).to_bytes(8, "little") + spelled + body


def resealed(raw: bytes, random_: random.Random) -> bytes:
    """Alter what is inside a seal, and seal it again."""
    if is_sealed(raw) or random_.random() < 0.5:
        return raw
    return SEALER.seal(respelled_block(raw, random_), ENTRY)


# plans


def plan_file() -> bytes:
    """A sound plan of two clusters."""
    eyes = np.eye(3, dtype=np.float32)
    clusters = tuple(
        Cluster(i, eyes[i], f"Question {i}?", (f"Question {i}?",), ("p",), 0.5, 3, "cards", ("x",))
        for i in range(2)
    )
    passages = {"p": Passage("p", "A passage.", {"title": "Cards"})}
    plan = Plan(ROOT, 1, Projection(np.zeros(3, np.float32), eyes[:2]), clusters, passages)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.plan"
        save_plan(plan, path)
        return path.read_bytes()


def read_plan(raw: bytes) -> None:
    """Load a plan, and use it as a router does."""
    with tempfile.TemporaryDirectory(dir=_fast()) as folder:
        path = Path(folder) / "one.plan"
        path.write_bytes(raw)
        try:
            plan = load_plan(path)
        except CacheError:
            return
    plan.reduced()
    for cluster in plan.clusters:
        plan.pinned(cluster)
        assert np.isfinite(cluster.centroid).all() and not np.isnan(cluster.radius)
    assert plan.kv_budget_bytes("cards") is None or plan.kv_budget_bytes("cards") >= 0
    assert len(plan.id) <= 40


def respelled_plan(raw: bytes, random_: random.Random) -> bytes:
    """Change a member of the archive at times, and let all checksums fit."""
    payload = raw[40:]
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        chosen = random_.choice(list(members))
        if chosen == "texts.npy":
            members[chosen] = _odd_texts(members[chosen], random_)
        else:
            altered = bytearray(members[chosen])
            altered[random_.randrange(len(altered))] = random_.randrange(256)
            members[chosen] = bytes(altered)
        buffer = io.BytesIO()
        kind = random_.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, member in members.items():
                archive.writestr(name, member)
        payload = buffer.getvalue()
    except Exception:  # noqa: BLE001 - too broken to be repaired: only the digest is
        pass
    return b"CKVPLAN1" + hashlib.sha256(payload).digest() + payload


def _odd_texts(member: bytes, random_: random.Random) -> bytes:
    texts = json.loads(np.load(io.BytesIO(member)).tobytes())
    places = [texts, texts["clusters"][0], texts["passages"], texts["settings"]]
    place = random_.choice([p for p in places if p])
    place[random_.choice(list(place))] = random_.choice(ODD)
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(json.dumps(texts).encode(), np.uint8))
    return buffer.getvalue()


# manifests


def manifest_file() -> bytes:
    """The manifest of a store of three blocks."""
    with tempfile.TemporaryDirectory() as folder:
        disk = DiskBlocks(Path(folder), budget_bytes=1 << 24)
        for link in chain(ROOT, range(150)):
            size = link.stop - link.start
            disk.put(link.parent, range(link.start, link.stop), small_block(size))
        disk.close()
        db = sqlite3.connect(Path(folder) / "manifest.sqlite")
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA page_size = 512")
        db.execute("VACUUM")
        db.close()
        return (Path(folder) / "manifest.sqlite").read_bytes()


def read_manifest(raw: bytes) -> None:
    """Open a store over a manifest, ask what a request asks, and write."""
    with tempfile.TemporaryDirectory(dir=_fast()) as folder:
        (Path(folder) / "manifest.sqlite").write_bytes(raw)
        try:
            disk = DiskBlocks(Path(folder), budget_bytes=1 << 24)
        except sqlite3.OperationalError:
            return  # busy or out of reach: said to the user
        try:
            _use(disk)
        except (sqlite3.Error, CacheError, OSError):
            return  # costs a request the store, not the answer
        finally:
            disk.close()


def _use(disk: DiskBlocks) -> None:
    links = chain(ROOT, range(150))
    for link in links:
        disk.has(link.id)
        disk.neighbours(link.parent, range(link.start, link.stop))
        disk.manifest.chain(link.id)
    for row in list(disk.manifest.rows()):
        assert disk.get(row.id) is None, "there is no file"
    disk.manifest.prefixes("plan")
    disk.manifest.leaves(10)
    disk.manifest.counters()
    disk.put(ROOT, range(64), small_block())
    disk.manifest.touch([links[0].id])


def altered_manifest(raw: bytes, random_: random.Random) -> bytes:
    """Write an odd value into a table by SQL, where the file can still be written."""
    with tempfile.TemporaryDirectory(dir=_fast()) as folder:
        path = Path(folder) / "manifest.sqlite"
        path.write_bytes(raw)
        db = sqlite3.connect(path)
        try:
            db.create_function("worth", 5, lambda *_: 0.0, deterministic=True)
            table = random_.choice(["blocks", "counters", "prefixes", "pins", "clocks"])
            columns = [str(r[1]) for r in db.execute(f"PRAGMA table_info({table})")]
            values = [v if isinstance(v, int | float | str) else None for v in ODD if v != 1 << 64]
            db.execute(
                f"UPDATE {table} SET {random_.choice(columns)} = ?", [random_.choice(values)]
            )
            db.commit()
        except (sqlite3.Error, ValueError, IndexError, MemoryError):  # too broken to be written
            return raw
        finally:
            db.close()
        return path.read_bytes()


# files of users

READERS: Sequence[tuple[str, Callable[[Path], object]]] = (
    ("q.csv", read_questions),
    ("p.jsonl", read_passages),
    ("d.json", read_domain_settings),
    ("pairs.csv", read_pairs),
    ("log.csv", read_chat_log),
    ("log.tsv", read_chat_log),
    ("log.jsonl", read_chat_log),
)
_USERS = (
    'question,domain\nHow do I block my card?,cards\n"What, if ""lost""?",\n',
    '{"id": "a", "text": "A passage.", "title": "T", "n": 1}\n{"id": 2, "text": "B"}\n',
    '{"cards": {"num_clusters": 20, "kv_budget_bytes": 1e9}}',
    "question_a,question_b,same_answer\nOne?,Another?,1\nOne?,None?,0\n",
    "role,utterance\nuser,Where is my card?\nagent,Here.\n",
    "speaker\ttext\nuser\tWhere is my card?\n",
    '{"messages": [{"role": "user", "content": [{"text": "Where?"}]}]}\n',
)


def read_users_file(raw: bytes) -> None:
    """Read a user's file; the first byte says of which kind. Texts can be stored as UTF-8."""
    name, read = READERS[raw[0] % len(READERS) if raw else 0]
    with tempfile.TemporaryDirectory(dir=_fast()) as folder:
        path = Path(folder) / name
        path.write_bytes(raw[1:])
        try:
            read(path)
        except ConfigError as error:
            assert "\n" not in str(error).strip(), "one line"


def _unchanged(raw: bytes, _: random.Random) -> bytes:
    return raw


def _fast() -> str | None:
    """Return a folder in memory, if there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def targets() -> dict[str, Target]:
    """Return every kind of file, by name."""
    raw = [block_file(), block_file(num_tokens=5, dtype="float16")]
    coded = [block_file(level) for level in LEVELS if level != "raw"]
    sealed = [SEALER.seal(raw[0], ENTRY), raw[0], coded[0]]
    users = [bytes([i]) + text.encode() for i, text in enumerate(_USERS)]
    found = (
        Target("blocks", [*raw, *coded], read_block, respelled_block),
        Target("sealed", sealed, read_block, resealed),
        Target("manifest", [manifest_file()], read_manifest, altered_manifest),
        Target("plan", [plan_file()], read_plan, respelled_plan),
        Target("questions", users, read_users_file, _unchanged),
    )
    return {target.name: target for target in found}
