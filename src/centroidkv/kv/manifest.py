"""The manifest: which blocks exist, what continues what, and who used them last.

A SQLite file that can be rebuilt from the block files. Knows paths and tensors only as sizes.
Recency is a counter, not a clock, so that clock jumps change nothing.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from centroidkv.kv.blocks import BLOCK_TOKENS
from centroidkv.kv.manifest_rows import BlockRow, HeldBlock, PrefixRow, sound_row
from centroidkv.kv.manifest_schema import open_manifest, settle_depths
from centroidkv.kv.policies import POLICIES
from centroidkv.kv.token_column import TokenColumn
from centroidkv.vault import IN_THE_CLEAR, Vault

__all__ = ["BlockRow", "HeldBlock", "Manifest", "PrefixRow"]


_SET_WORTH = """UPDATE blocks SET worth = worth(
    COALESCE((SELECT value FROM clocks WHERE name = 'age'), 0), uses, depth, tokens, num_bytes)"""


class Manifest:
    """The index over one store's blocks. Safe for many threads and processes.

    Args:
        path: The SQLite file, or `:memory:` for one that is not kept.
        policy: In which order blocks leave; see `POLICIES`.
        read_only: Change nothing, not even in files of SQLite's own.
        vault: What seals token ids, or does not.
    """

    def __init__(
        self,
        path: Path,
        *,
        policy: str = "lru",
        read_only: bool = False,
        vault: Vault = IN_THE_CLEAR,
    ) -> None:
        self._lock = threading.RLock()
        self._order = ", ".join(POLICIES[policy])
        self._tokens = TokenColumn(vault, self._rows)
        self._db = open_manifest(
            path, policy=policy, read_only=read_only, extra_bytes=vault.column_bytes
        )

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._db.in_transaction:  # a part of what this thread does alone
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other writer out, of any process; what the body changes is one write."""
        with self._writing():
            yield

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _number(self, query: str, *values: object) -> int:
        rows = self._rows(query, *values)
        return int(str(rows[0][0])) if rows and rows[0][0] is not None else 0

    def _now(self) -> int:
        """Return the time of a write: behind all others, those of other processes too."""
        return self._number("SELECT MAX(last_used) FROM blocks") + 1

    # blocks

    def has(self, block_id: str) -> bool:
        return bool(self._rows("SELECT 1 FROM blocks WHERE id = ?", block_id))

    def get(self, block_id: str) -> BlockRow | None:
        return next(self.rows("id = ?", block_id), None)

    def rows(self, where: str = "1", *values: object) -> Iterator[BlockRow]:
        """Yield the sound rows that a condition selects."""
        columns = "id, parent, namespace, level, tokens, num_bytes"
        for found in self._rows(f"SELECT {columns} FROM blocks WHERE {where}", *values):
            row = sound_row((*found[:4], self._tokens.take(found[4]), found[5]))
            if row is not None:
                yield row

    def unsound(self) -> list[str]:
        """Return the ids of rows that are damaged; these are taken for not there."""
        sound = {row.id for row in self.rows()}
        return [str(b) for (b,) in self._rows("SELECT id FROM blocks") if str(b) not in sound]

    def neighbours(
        self, parent: str, token_ids: Sequence[int]
    ) -> list[tuple[str, tuple[int, ...]]]:
        """Return the children just before and just after `token_ids` in token order."""
        with self._lock:
            return self._tokens.neighbours(parent, token_ids)

    def add(self, *rows: BlockRow) -> None:
        """Insert blocks at once; one that is known already stays as it is."""
        with self._writing() as db:
            now = self._now()
            num_tokens = self._tokens.count_in("tokens")
            db.executemany(
                f"""INSERT OR IGNORE INTO blocks (id, parent, namespace, level, tokens, num_bytes,
                is_full, last_used, depth)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, COALESCE(
                    (SELECT depth + {num_tokens} FROM blocks WHERE id = ?), 0))""",
                [
                    (
                        row.id,
                        row.parent,
                        row.namespace,
                        row.level,
                        self._tokens.put(row.token_ids),
                        row.num_bytes,
                        len(row.token_ids) == BLOCK_TOKENS,
                        now,
                        row.parent,
                    )
                    for row in rows
                ],
            )
            db.executemany(f"{_SET_WORTH} WHERE id = ?", [(row.id,) for row in rows])

    def settle_depths(self) -> None:
        """Count for every block the tokens before it; needed where blocks came in any order."""
        with self._writing() as db:
            settle_depths(db)

    def replace_tail(self, old: str, new: str) -> None:
        """Forget a tail that a longer block has superseded; prefixes follow."""
        with self._writing() as db:
            db.execute("UPDATE prefixes SET block = ? WHERE block = ?", (new, old))
            db.execute("DELETE FROM blocks WHERE id = ?", (old,))

    def remove(self, block_ids: Iterable[str]) -> None:
        gone = list(block_ids)
        with self._writing() as db:
            db.executemany("DELETE FROM blocks WHERE id = ?", [(b,) for b in gone])
            self._tokens.forget(gone)

    def evict(self, block_ids: Sequence[str]) -> None:
        """Remove blocks for want of room: the store's age becomes what the best was worth."""
        with self._writing() as db:
            age = "SELECT 'age', worth FROM blocks WHERE id = ?"
            older = "ON CONFLICT (name) DO UPDATE SET value = MAX(value, excluded.value)"
            for block in block_ids:
                db.execute(f"INSERT INTO clocks {age} {older}", (block,))
                db.execute("DELETE FROM blocks WHERE id = ?", (block,))
            self._tokens.forget(block_ids)

    def touch(self, block_ids: Sequence[str]) -> None:
        """Mark blocks as just used."""
        with self._writing() as db:
            now = self._now()
            used = "last_used = ?, uses = uses + 1"
            for block in block_ids:
                db.execute(f"UPDATE blocks SET {used} WHERE id = ?", (now, block))
                db.execute(f"{_SET_WORTH} WHERE id = ?", (block,))

    def leaves(self, limit: int, offset: int = 0) -> list[tuple[str, int]]:
        """Return (id, bytes) of blocks that may go, the first to go first.

        These have no children, and no pinned cluster's prefix ends in them.
        """
        query = f"""SELECT id, num_bytes FROM blocks AS b WHERE NOT EXISTS
            (SELECT 1 FROM blocks AS c WHERE c.parent = b.id) AND NOT EXISTS
            (SELECT 1 FROM prefixes AS p JOIN pins USING (plan, cluster) WHERE p.block = b.id)
            ORDER BY {self._order}, id LIMIT ? OFFSET ?"""
        return [(str(b), int(str(n))) for b, n in self._rows(query, limit, offset)]

    def is_leaf(self, block_id: str) -> bool:
        """Tell whether a block is there and none behind it."""
        query = "SELECT 1 FROM blocks WHERE id = ? AND NOT EXISTS"
        return bool(
            self._rows(f"{query} (SELECT 1 FROM blocks WHERE parent = ?)", block_id, block_id)
        )

    # what a remote has had

    def owed(self, limit: int) -> list[BlockRow]:
        """Return full blocks that no remote has had, those near the start first."""
        return list(
            self.rows("in_remote = 0 AND is_full = 1 ORDER BY depth, last_used LIMIT ?", limit)
        )

    def is_owed(self, block_id: str) -> bool:
        query = "SELECT 1 FROM blocks WHERE id = ? AND in_remote = 0 AND is_full = 1"
        return bool(self._rows(query, block_id))

    def sent(self, block_ids: Iterable[str]) -> None:
        """Note that the remote has had blocks."""
        with self._writing() as db:
            rows = [(b,) for b in block_ids]
            db.executemany("UPDATE blocks SET in_remote = 1 WHERE id = ?", rows)

    def send_to(self, remote: str) -> None:
        """Name the remote that blocks are sent to; another one than before has had none yet."""
        with self._writing() as db:
            known = db.execute("SELECT id FROM remotes").fetchall()
            if known == [(remote,)]:
                return
            if known:
                db.execute("UPDATE blocks SET in_remote = 0")
            db.execute("DELETE FROM remotes")
            db.execute("INSERT INTO remotes VALUES (?)", (remote,))

    def standing(self, block_id: str) -> tuple[str, float] | None:
        """Return a block's parent and worth."""
        rows = self._rows("SELECT parent, worth FROM blocks WHERE id = ?", block_id)
        return (str(rows[0][0]), float(str(rows[0][1]))) if rows else None

    def chain(self, block_id: str) -> list[BlockRow]:
        """Return the rows from the first block of a sequence to `block_id`; [] if broken."""
        rows: list[BlockRow] = []
        current = self.get(block_id)
        seen: set[str] = set()  # what others wrote may go round in circles
        while current is not None and current.id not in seen:
            seen.add(current.id)
            rows.append(current)
            if current.parent == current.namespace:
                return rows[::-1]
            current = self.get(current.parent)
        return []

    def num_blocks(self, namespace: str | None = None) -> int:
        if namespace is None:
            return self._number("SELECT COUNT(*) FROM blocks")
        return self._number("SELECT COUNT(*) FROM blocks WHERE namespace = ?", namespace)

    def is_empty(self, namespace: str | None = None) -> bool:
        """Tell whether there are no blocks, of one namespace or at all; counts nothing."""
        if namespace is None:
            return not self._rows("SELECT 1 FROM blocks LIMIT 1")
        return not self._rows("SELECT 1 FROM blocks WHERE parent = ? LIMIT 1", namespace)

    # prefixes of clusters

    def set_prefix(self, row: PrefixRow) -> None:
        with self._writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO prefixes VALUES (?, ?, ?, ?, ?, ?)",
                (row.plan, row.cluster, row.namespace, row.head, row.block, row.num_tokens),
            )

    def prefixes(self, plan: str, cluster: int | None = None) -> list[PrefixRow]:
        """Return the prefixes whose last block is still there."""
        query = "SELECT p.* FROM prefixes AS p JOIN blocks AS b ON b.id = p.block WHERE p.plan = ?"
        values: list[object] = [plan]
        if cluster is not None:
            query += " AND p.cluster = ?"
            values.append(cluster)
        return [
            PrefixRow(str(r[0]), int(str(r[1])), str(r[2]), str(r[3]), str(r[4]), int(str(r[5])))
            for r in self._rows(query, *values)
        ]

    def held(self, plan: str, namespace: str, clusters: Sequence[int]) -> list[HeldBlock]:
        """Return the blocks of some clusters' prefixes, from the first to the last, each once."""
        query = f"""WITH RECURSIVE held (id) AS (
            SELECT block FROM prefixes WHERE plan = ? AND namespace = ?
                AND cluster IN (SELECT value FROM json_each(?))
            UNION SELECT b.parent FROM blocks AS b JOIN held ON b.id = held.id)
            SELECT b.id, b.num_bytes, {self._tokens.count_in("b.tokens")}
            FROM blocks AS b JOIN held USING (id)"""
        rows = self._rows(query, plan, namespace, json.dumps(list(clusters)))
        return [HeldBlock(str(b), int(str(size)), int(str(tokens))) for b, size, tokens in rows]

    def copy_prefixes(self, plan: str, to: str, clusters: Iterable[int]) -> None:
        """Let clusters of another plan have the prefixes that those of the same number have.

        And be pinned where those are.
        """
        clusters = list(clusters)
        with self._writing() as db:
            db.executemany(
                "INSERT OR IGNORE INTO prefixes SELECT ?, cluster, namespace, head, block,"
                " num_tokens FROM prefixes WHERE plan = ? AND cluster = ?",
                [(to, plan, cluster) for cluster in clusters],
            )
            db.executemany(
                "INSERT OR IGNORE INTO pins SELECT ?, cluster, in_memory FROM pins"
                " WHERE plan = ? AND cluster = ?",
                [(to, plan, cluster) for cluster in clusters],
            )

    def drop_prefixes(self, plan: str) -> None:
        """Forget where the clusters of a plan have their KV; the blocks stay."""
        with self._writing() as db:
            db.execute("DELETE FROM pins WHERE plan = ?", (plan,))
            db.execute("DELETE FROM prefixes WHERE plan = ?", (plan,))

    # pinned clusters

    def pin(self, plan: str, cluster: int, *, in_memory: bool) -> None:
        """Keep a cluster's prefixes from being evicted."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO pins VALUES (?, ?, ?)", (plan, cluster, in_memory))

    def unpin(self, plan: str, cluster: int) -> None:
        with self._writing() as db:
            db.execute("DELETE FROM pins WHERE plan = ? AND cluster = ?", (plan, cluster))

    def pins(self) -> list[tuple[str, int, bool]]:
        """Return (plan, cluster, kept in memory too) of every pinned cluster."""
        rows = self._rows("SELECT plan, cluster, in_memory FROM pins ORDER BY plan, cluster")
        return [(str(plan), int(str(cluster)), bool(kept)) for plan, cluster, kept in rows]

    # counters

    def count(self, names: Iterable[str]) -> None:
        """Add one to each named counter."""
        with self._writing() as db:
            db.executemany(
                "INSERT INTO counters VALUES (?, 1)"
                " ON CONFLICT (name) DO UPDATE SET value = value + 1",
                [(n,) for n in names],
            )

    def counters(self) -> dict[str, int]:
        rows = self._rows("SELECT name, value FROM counters ORDER BY name")
        return {str(name): int(str(value)) for name, value in rows}

    def disk_bytes(self) -> int:
        return self._number("SELECT value FROM counters WHERE name = 'disk_bytes'")

    def faults(self) -> list[str]:
        """Run SQLite's own check; [] means sound."""
        rows = self._rows("PRAGMA quick_check")
        return [str(r[0]) for r in rows if r[0] != "ok"]
