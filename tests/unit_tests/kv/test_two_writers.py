"""Several writers on one folder of blocks: the budget, and files and rows that stay together."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from centroidkv.kv.blocks import namespace_id
from centroidkv.kv.disk import DiskBlocks
from small_parts import make_block

NAMESPACE = namespace_id("kv", "test")
BUDGET_BYTES = 400_000
BLOCK_BYTES = 64 * 2 * 2 * 10 * 4 + 4096


@pytest.fixture
def open_disk(tmp_path: Path) -> Iterator[Callable[[], DiskBlocks]]:
    opened: list[DiskBlocks] = []

    def opening() -> DiskBlocks:
        opened.append(DiskBlocks(tmp_path, budget_bytes=BUDGET_BYTES))
        return opened[-1]

    yield opening
    for disk in opened:
        disk.close()


def put(disk: DiskBlocks, number: int, parent: str = NAMESPACE) -> str | None:
    return disk.put(parent, tuple(range(number, number + 64)), make_block(seed=number))


def held_bytes(disk: DiskBlocks) -> int:
    total = 0
    for path in disk.folder.glob("blocks/??/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed or evicted in this moment
            continue
    return total


def test_writers_together_stay_within_the_budget(open_disk: Callable[[], DiskBlocks]) -> None:
    disks = [open_disk() for _ in range(3)]
    errors: list[Exception] = []

    def write(disk: DiskBlocks) -> None:
        try:
            for number in range(40):  # all write the same blocks, far more than there is room for
                put(disk, number)
        except Exception as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    writers = [threading.Thread(target=write, args=(disk,)) for disk in disks]
    for writer in writers:
        writer.start()
    noted, lying = [], []
    while any(writer.is_alive() for writer in writers):
        noted.append(disks[0].manifest.disk_bytes())
        lying.append(held_bytes(disks[0]))
    assert errors == []
    assert max(noted) <= BUDGET_BYTES
    assert max(lying) <= BUDGET_BYTES + len(disks) * BLOCK_BYTES
    assert disks[0].manifest.counters()["evicted_blocks"] > 0
    rows = {row.id for row in disks[0].manifest.rows()}
    assert rows == {path.stem for path in disks[0].files()}


def test_a_block_that_another_evicts_is_no_damage(open_disk: Callable[[], DiskBlocks]) -> None:
    one, other = open_disk(), open_disk()
    block = put(one, 1)
    assert block is not None
    row = one.manifest.get(block)
    assert row is not None
    other.budget_bytes = 40_000
    other.make_room(39_000)
    assert one.read(row) is None
    assert "damaged_blocks" not in one.manifest.counters()


def test_a_block_written_anew_meanwhile_is_kept(open_disk: Callable[[], DiskBlocks]) -> None:
    disk = open_disk()
    block = put(disk, 1)
    assert block is not None
    row, path = disk.manifest.get(block), disk.path(block)
    assert row is not None
    sound = path.read_bytes()
    verified, looks = disk.verified, []

    def late(row, path):  # the first look finds the file damaged, and then it is mended
        if not looks:
            path.write_bytes(sound[:-1])
        looks.append(path)
        try:
            return verified(row, path)
        finally:
            path.write_bytes(sound)

    disk.verified = late  # type: ignore[method-assign]
    assert disk.read(row) is None
    assert disk.has(block) and path.exists() and len(looks) == 2


def test_a_block_whose_parent_is_gone_leaves_no_file(open_disk: Callable[[], DiskBlocks]) -> None:
    one, other = open_disk(), open_disk()
    parent = put(one, 1)
    assert parent is not None
    one.leases.hold = lambda ids: EvictedBy(other, parent)  # type: ignore[assignment, return-value]
    assert put(one, 2, parent) is None
    assert list(one.files()) == []


class EvictedBy:
    """A lease, during which another process evicts the parent: leases end with the process."""

    def __init__(self, other: DiskBlocks, parent: str) -> None:
        self._other, self._parent = other, parent

    def __enter__(self) -> None:
        self._other.budget_bytes = 40_000
        self._other.make_room(39_000)

    def __exit__(self, *_: object) -> None: ...
