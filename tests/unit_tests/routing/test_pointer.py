"""The pointer to the version in force is read as it was written, or not at all."""

from pathlib import Path

import pytest

from centroidkv.errors import CacheCorrupt
from centroidkv.routing.plan import Plan, PlanFolder
from centroidkv.routing.pointer import Pointer, read_pointer, write_pointer
from centroidkv.routing.projection import identity

NAMESPACE = "6e73" + "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plans" / "one.pointer"


def test_a_pointer_comes_back_as_it_was_written(path: Path) -> None:
    assert read_pointer(path) is None
    for pointer in (Pointer(3), Pointer(3, 2, trial=4, share=0.1, last=7)):
        write_pointer(path, pointer)
        assert read_pointer(path) == pointer


def test_a_switch_remembers_where_it_came_from_and_ends_a_trial() -> None:
    first = Pointer(1, last=1)
    tried = first.trying(4, 0.25)
    assert (tried.in_force, tried.trial, tried.share, tried.last) == (1, 4, 0.25, 4)
    assert tried.versions == {1, 4}
    assert tried.switched(4) == Pointer(4, previous=1, last=4)
    assert tried.without_trial() == Pointer(1, last=4), "its number is not given out again"
    assert Pointer(4, previous=1, last=4).switched(4) == Pointer(4, previous=1, last=4)


@pytest.mark.parametrize("keep", [0, 10, 40, -1])
def test_a_truncated_pointer_is_noticed(path: Path, keep: int) -> None:
    write_pointer(path, Pointer(3, 2))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CacheCorrupt, match="checksum"):
        read_pointer(path)


def test_any_flipped_byte_is_noticed(path: Path) -> None:
    write_pointer(path, Pointer(3, 2, trial=4, share=0.5))
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(CacheCorrupt):
            read_pointer(path)


def make_plan(version: int) -> Plan:
    return Plan(NAMESPACE, version, identity(), ())


def test_the_pointer_decides_which_version_is_in_force(tmp_path: Path) -> None:
    folder = PlanFolder(tmp_path / "plans")
    for version in (1, 2, 3):
        folder.save(make_plan(version))
    assert folder.in_force(NAMESPACE)[0].version == 3, "without a pointer, the newest"
    folder.point(NAMESPACE, Pointer(2))
    plan, problems = folder.in_force(NAMESPACE)
    assert plan.version == 2 and problems == []


@pytest.mark.parametrize("damage", ["pointer", "plan", "no plan"])
def test_the_newest_readable_version_steps_in_for_what_is_damaged(
    tmp_path: Path, damage: str
) -> None:
    folder = PlanFolder(tmp_path / "plans")
    for version in (1, 2, 3):
        folder.save(make_plan(version))
    folder.point(NAMESPACE, Pointer(2))
    victims = {"pointer": folder.pointer_path(NAMESPACE)}
    victim = victims.get(damage, folder.path(NAMESPACE, 2))
    if damage == "no plan":
        victim.unlink()
    else:
        victim.write_bytes(b"garbage")
    plan, problems = folder.in_force(NAMESPACE)
    assert plan.version == 3
    assert len(problems) == 1 and victim.name in str(problems[0])


def test_a_pointer_is_one_namespaces_own(tmp_path: Path) -> None:
    folder = PlanFolder(tmp_path / "plans")
    folder.save(make_plan(1))
    folder.point("6e73" + "cd" * 32, Pointer(9))
    assert folder.in_force(NAMESPACE)[0].version == 1
    assert folder.versions(NAMESPACE) == [1]
