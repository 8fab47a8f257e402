"""What a remote holds stays within its budget, and what was deleted is not counted on."""

from collections.abc import Iterator, Sequence

import pytest

from centroidkv.breaker import Breaker
from centroidkv.kv.blocks import block_id, namespace_id
from centroidkv.kv.byte_store import Entry
from centroidkv.kv.remote import RemoteBlocks
from centroidkv.kv.remote_budget import RemoteBudget
from centroidkv.kv.remote_calls import RemoteCalls
from centroidkv.remote_settings import RemoteSettings

ROOT = namespace_id("test")
SIZE = 1000


class Shelf:
    """Bytes by name in a dictionary. See `ByteStore`."""

    names_at_once = 1

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.refuses = False

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return [len(self.held[n]) if n in self.held else None for n in names]

    def read(self, name: str) -> bytes | None:
        return self.held.get(name)

    def write(self, name: str, raw: bytes) -> None:
        self.held[name] = raw

    def delete(self, names: Sequence[str]) -> None:
        if self.refuses:
            raise PermissionError
        for name in names:
            self.held.pop(name, None)

    def listing(self) -> Iterator[Entry]:
        yield from [Entry(name, len(raw), 0.0) for name, raw in self.held.items()]

    def close(self) -> None:
        pass

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.held.values()))


class Machine:
    """One machine's view of a shelf, with room for ten blocks; chains that it writes it knows."""

    def __init__(self, shelf: Shelf) -> None:
        self.parents: dict[str, str] = {}
        calls = RemoteCalls("test", timeout_s=5, retries=0, breaker=Breaker(), count=print)
        self.remote = RemoteBlocks(
            shelf,
            RemoteSettings("test://"),
            calls,
            budget=RemoteBudget(10 * SIZE, self.standing),
        )

    def standing(self, block: str) -> tuple[str, float] | None:
        return (self.parents[block], 1.0) if block in self.parents else None

    def write(self, start: int, *, parent: str = ROOT) -> str | None:
        """Write a block of tokens that begin with `start`; None if it is not there."""
        own = block_id(parent, range(start, start + 64))
        self.parents[own] = parent
        raw = {"raw": bytes(SIZE)}
        return own if self.remote.put(own, raw, parent=parent) else None


def test_a_chain_that_is_longer_than_the_budget_ends_where_it_is_reached() -> None:
    shelf = Shelf()
    machine, last, written = Machine(shelf), ROOT, 0
    while (own := machine.write(64 * written, parent=last)) is not None and written < 20:
        last, written = own, written + 1
    assert written == 10 and shelf.num_bytes == 10 * SIZE


def test_machines_that_share_a_remote_share_its_budget() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)
    for start in range(15):
        assert one.write(start)
        assert two.write(1000 + start)
        assert shelf.num_bytes <= 10 * SIZE


def test_a_block_that_was_deleted_is_not_believed_to_be_there() -> None:
    machine = Machine(Shelf())
    written = [machine.write(start) for start in range(15)]
    there = {name.split("/")[1].split(".")[0] for name in machine.remote._store.held}
    assert {own for own in written if machine.remote.has(own)} == there


def test_what_could_not_be_deleted_is_still_counted() -> None:
    shelf = Shelf()
    machine = Machine(shelf)
    for start in range(10):
        machine.write(start)
    shelf.refuses = True
    for start in range(10, 20):
        assert machine.write(start) is None
    assert shelf.num_bytes == 10 * SIZE


@pytest.mark.parametrize("num_writes", [40])
def test_a_remote_with_room_is_seldom_listed(num_writes: int) -> None:
    shelf = Shelf()
    machine, listings = Machine(shelf), []
    budget = machine.remote.budget
    assert budget is not None
    budget.budget_bytes = 1000 * SIZE
    shelf.listing = lambda: iter(listings.append(1) or [])
    for start in range(num_writes):
        machine.write(start)
    assert len(listings) == 1
