"""A store's first file: its id, whatever else is written there."""

from pathlib import Path

import pytest

from centroidkv.store_marker import change_key, create_store, open_vault, store_id


def test_an_id_stays_with_another_key(tmp_path: Path) -> None:
    create_store(tmp_path / "store", bytes(32))
    own = store_id(tmp_path / "store")
    assert len(own) == 32
    change_key(tmp_path / "store", bytes(32), bytes(31) + b"1")
    assert store_id(tmp_path / "store") == own


def test_no_two_stores_have_one_id(tmp_path: Path) -> None:
    for name in ("a", "b"):
        create_store(tmp_path / name, None)
    assert store_id(tmp_path / "a") != store_id(tmp_path / "b")


@pytest.mark.parametrize("rest", ["", ', "id": 7', ', "id": "../../x"'])
def test_a_marker_without_an_id_gets_one(tmp_path: Path, rest: str) -> None:
    create_store(tmp_path, None)
    (tmp_path / "store.json").write_text(f'{{"format": 1{rest}}}')
    own = store_id(tmp_path)
    assert len(own) == 32
    assert store_id(tmp_path) == own
    open_vault(tmp_path, None)


def test_a_marker_that_cannot_be_written_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(tmp_path, None)
    (tmp_path / "store.json").write_text('{"format": 1}')

    def refused(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr("centroidkv.store_marker.write_atomic", refused)
    assert store_id(tmp_path) == ""


def test_of_a_store_that_is_only_read_the_marker_stays_as_it_is(tmp_path: Path) -> None:
    create_store(tmp_path, None)
    (tmp_path / "store.json").write_text('{"format": 1}')
    assert store_id(tmp_path, may_write=False) == ""
    assert (tmp_path / "store.json").read_text() == '{"format": 1}'
