"""Sound files of another model's form, on disk or in a remote: never used, counted, computed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from centroidkv import Engine
from centroidkv.block_form import BlockForm
from centroidkv.errors import CacheMismatch
from centroidkv.kv.blocks import chain, namespace_id
from centroidkv.kv.codec import block_bytes
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.kv.remote import entry_name
from centroidkv.kv.remote_opening import open_remote
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.remote_settings import RemoteSettings
from centroidkv.types import KVBlock
from small_parts import make_block

ROOT = namespace_id("test")
TOKENS = tuple(range(200))
FORM = BlockForm(2, 2, 4, 6, "float32")
FOREIGN = {
    "layers": KVBlock(np.zeros((3, 2, 64, 4), "f4"), np.zeros((3, 2, 64, 6), "f4"), "float32"),
    "heads": KVBlock(np.zeros((2, 1, 64, 4), "f4"), np.zeros((2, 1, 64, 6), "f4"), "float32"),
    "numbers": KVBlock(np.zeros((2, 2, 64, 9), "f4"), np.zeros((2, 2, 64, 6), "f4"), "float32"),
    "type": make_block(dtype="float16"),
}


@pytest.fixture
def disk(tmp_path: Path):
    (tmp_path / "store").mkdir()
    opened = DiskBlocks(tmp_path / "store", budget_bytes=1 << 24)
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "remote"


def tiers(disk: DiskBlocks, folder: Path) -> TieredBlocks:
    settings = RemoteSettings.of({"url": f"file://{folder}", "retries": 0, "min_tokens": 1})
    remote = open_remote(
        settings,
        count=lambda name: disk.manifest.count([name]),
        standing=disk.manifest.standing,
    )
    return TieredBlocks(MemoryBlocks(budget_bytes=1 << 24), disk, remote)


def entry(block: KVBlock, *, namespace: str = ROOT) -> tuple[str, bytes]:
    link = chain(ROOT, TOKENS)[0]
    ids = link.id, link.parent, namespace
    raw = block_bytes(block, ids=ids, token_ids=TOKENS[:64])
    return link.id, raw


def write_entry(folder: Path, block: str, raw: bytes) -> None:
    path = folder / entry_name(block, "raw")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_block_of_another_form_on_disk_is_set_aside(disk: DiskBlocks, kind: str) -> None:
    own = disk.put(ROOT, TOKENS[:64], FOREIGN[kind])
    assert own is not None and disk.get(own) is not None, "nobody has said what is expected"
    disk.forms[ROOT] = FORM
    assert disk.get(own) is None and not disk.has(own)
    counters = disk.manifest.counters()
    assert counters["foreign_blocks"] == counters["damaged_blocks"] == 1
    assert len(list((disk.folder / "quarantine").iterdir())) == 1


def test_a_block_of_the_form_is_used(disk: DiskBlocks) -> None:
    disk.forms[ROOT] = FORM
    own = disk.put(ROOT, TOKENS[:64], make_block())
    assert own is not None and disk.get(own) is not None


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_forged_entry_of_a_remote_is_not_used(disk: DiskBlocks, folder: Path, kind: str) -> None:
    blocks = tiers(disk, folder)
    blocks.expect(ROOT, FORM)
    write_entry(folder, *entry(FOREIGN[kind]))
    match = blocks.match(ROOT, TOKENS)
    assert [blocks.fetch(step.id) for step in match.steps] == [None]
    assert disk.manifest.counters()["remote_foreign"] == 1
    assert blocks.match(ROOT, TOKENS).num_tokens == 0, "it is not asked for again"


def test_an_entry_that_names_another_namespace_is_not_used(disk: DiskBlocks, folder: Path) -> None:
    blocks = tiers(disk, folder)
    blocks.expect(ROOT, FORM)
    block, raw = entry(make_block(), namespace=namespace_id("other"))
    write_entry(folder, block, raw)
    assert [blocks.fetch(s.id) for s in blocks.match(ROOT, TOKENS).steps] == [None]


def test_of_a_huge_entry_no_more_is_read_than_a_block_can_have(
    disk: DiskBlocks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = tiers(disk, folder)
    blocks.expect(ROOT, FORM)
    block, raw = entry(make_block())
    write_entry(folder, block, raw)
    with (folder / entry_name(block, "raw")).open("r+b") as file:
        file.truncate(1 << 34)
    read: list[int] = []
    files = type(fsspec.filesystem("file"))
    whole = files.cat_file

    def counted(self, path, start=None, end=None, **options):
        found = whole(self, path, start=start, end=end, **options)
        read.append(len(found))
        return found

    monkeypatch.setattr(files, "cat_file", counted)
    assert [blocks.fetch(s.id) for s in blocks.match(ROOT, TOKENS).steps] == [None]
    assert read == [FORM.most_file_bytes(64) + 1]


def test_what_lies_under_the_prefix_and_is_not_ours_is_never_deleted(
    disk: DiskBlocks, folder: Path
) -> None:
    names = ["notes.txt", "ab/notes.raw", f"ab/{'c' * 64}.raw", f"cc/{'c' * 64}.raw/x"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(10_000))
    settings = RemoteSettings.of({"url": f"file://{folder}", "budget_bytes": 9_000})
    remote = open_remote(settings, count=lambda _: None, standing=disk.manifest.standing)
    block, raw = entry(make_block())
    for other in (block, "ab" + "0" * 62):
        remote.put(other, {"raw": raw[:5_000]})
    assert all((folder / name).exists() for name in names)
    assert not (folder / entry_name(block, "raw")).exists(), "what is ours makes room"


def test_the_form_of_a_model_is_that_of_its_blocks(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """Golden: with the check on, blocks of this model pass, and an answer hits."""
    prompt = "A passage about cards. " * 12 + "What now?"
    engine = open_engine()
    cold = engine.generate(prompt, max_tokens=8)
    engine.close()
    engine = open_engine()
    warm = engine.generate(prompt, max_tokens=8)
    assert warm.text == cold.text and warm.usage.reused_tokens > 64
    engine.close()
    # A store whose blocks another program wrote: sound, and of half the layers.
    store = tmp_path / "store"
    disk = DiskBlocks(store, budget_bytes=1 << 30)
    for row in list(disk.manifest.rows()):
        found = disk.get(row.id)
        assert found is not None
        half = replace(found, keys=found.keys[:1].copy(), values=found.values[:1].copy())
        ids = row.id, row.parent, row.namespace
        disk.path(row.id).write_bytes(block_bytes(half, ids=ids, token_ids=row.token_ids))
    disk.close()
    engine = open_engine()
    again = engine.generate(prompt, max_tokens=8)
    assert again.text == cold.text and again.usage.reused_tokens == 0
    assert engine.stats().counters["foreign_blocks"] > 0
    engine.check(repair=True)  # what was not asked for is found by the check
    assert engine.check().is_clean


def test_the_message_names_both_forms() -> None:
    with pytest.raises(CacheMismatch, match=r"KV of x.*\(2, 2, 4\).*\(3, 2, 4\)"):
        FORM.require(((3, 2, 64, 4), (3, 2, 64, 6)), "float32", "x")
