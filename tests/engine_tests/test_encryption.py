"""An encrypted store: nothing of it can be read off its files, and it answers as any other."""

import base64
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv import Engine
from centroidkv.config import EngineConfig
from centroidkv.errors import (
    CacheCorrupt,
    CacheMismatch,
    ConfigError,
    StoreError,
    StoreNotFound,
)
from centroidkv.knowledge import KnowledgeBase
from centroidkv.kv.blocks import block_id, namespace_id, pack
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.manifest import BlockRow, Manifest
from centroidkv.maintenance import check_store
from centroidkv.privacy.forget_log import ForgetLog
from centroidkv.privacy.wanted import Wanted
from centroidkv.serving.answers import Answer
from centroidkv.store import Store
from centroidkv.store_marker import change_key, create_store, open_vault
from centroidkv.types import Passage
from centroidkv.vault import IN_THE_CLEAR, SealedVault
from small_parts import make_block
from word_bank import PASSAGES, QUESTIONS, ask, build_twice, labelled, search

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(32)).decode()
NEW = "did Zebulon Quibble block his lost card"
VAULT = SealedVault(bytes(32))
NAMESPACE = namespace_id("model")

Opening = Callable[..., Engine]


def everything_in(engine: Engine) -> dict[str, bytes]:
    """Put something of every kind into a store; return bytes of each that must not be seen."""
    build_twice(engine)
    for question in (NEW, *QUESTIONS[:3]):
        ask(engine, question, reuse="representative")
    done = ask(engine, NEW)
    vector = engine.router.embedder.embed([NEW])[0]
    engine.answers.put(Answer("1", NEW, "Blocked, Mr Quibble", 0.0), scope="s", vector=vector)
    base = KnowledgeBase([Passage.of(PASSAGES["loan"])], engine.router.embedder)
    base.save(engine.store.path, engine.store.vault)
    ids = engine.model.encode(NEW, chat_template=False).token_ids
    engine._policies.blend.heads.add(ids)
    passage = Passage("own-id-of-Quibble", "Mr Quibble may enter. " * 4, {"title": "On Quibbles"})
    engine.build(
        questions=QUESTIONS,
        domains=["quibbling"] * 4 + ["other"] * 5,
        retriever=lambda q: [*search(q), passage],
        num_clusters=2,
        pca_dim=8,
    )
    acme = engine.for_tenant("Quibble and Sons")
    ask(acme, NEW)
    engine.calibrate(labelled())
    engine.flush()
    row = next(iter(engine.store.blocks.disk.manifest.rows()))
    block = engine.store.blocks.get(row.id)
    assert block is not None
    return {
        "question": NEW[4:20].encode(),
        "a word of it": b"Zebulon",
        "past question": QUESTIONS[0].encode(),
        "passage": PASSAGES["card"][:24].encode(),
        "the knowledge base": PASSAGES["loan"][:24].encode(),
        "kept answer": b"Mr Quibble",
        "domain": b"quibbling",
        "metadata": b"On Quibbles",
        "id of a passage": b"own-id-of-Quibble",
        "labelled word": b'"card": ',
        "embedding": np.asarray(vector, np.float32).tobytes()[:24],
        "tokens": pack(row.token_ids[:12]),
        "tokens in a block": pack(row.token_ids[:12]).hex().encode(),
        "tokens of an answer": pack(done.token_ids[:6]),
        "tokens of a head": json.dumps(list(ids))[:40].encode(),
        "keys": np.ascontiguousarray(block.keys).tobytes()[:24],
        "values": np.ascontiguousarray(block.values).tobytes()[:24],
    }


def seen(folder: Path, needles: dict[str, bytes]) -> dict[str, str]:
    """Name the needles that stand in some file, and the file."""
    files = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return {name: f.name for name, needle in needles.items() for f in files if needle in files[f]}


@pytest.fixture
def sealed(open_engine: Opening) -> Engine:
    return open_engine(encryption_key=KEY, near_misses=1, online_radius=0.01)


def test_nothing_can_be_read_off_the_files(sealed: Engine, tmp_path: Path) -> None:
    needles = everything_in(sealed)
    assert seen(tmp_path, needles) == {}
    sealed.close()
    assert seen(tmp_path, needles) == {}
    assert not (tmp_path / "store/chroma").exists()


def test_without_a_key_all_of_it_can_be_read(open_engine: Opening, tmp_path: Path) -> None:
    engine = open_engine(near_misses=1, online_radius=0.01)
    needles = everything_in(engine)
    engine.close()
    assert set(seen(tmp_path, needles)) == set(needles)


def test_it_answers_as_one_in_the_clear(open_engine: Opening, tmp_path: Path) -> None:
    def told(name: str, **options: object) -> list[tuple[object, ...]]:
        path, rows = tmp_path / name, []
        with open_engine(path, **options) as engine:
            build_twice(engine)
        with open_engine(path, **options) as engine:
            for question in (NEW, QUESTIONS[0], NEW):
                done = ask(engine, question)
                rows.append((done.token_ids, done.usage.outcome, done.usage.cached_tokens))
                assert done.token_ids == ask(engine, question, reuse="off").token_ids
            assert engine.check().problems == []
            assert engine.stats().counters.get("damaged_blocks", 0) == 0
        return rows

    clear, sealed = told("clear"), told("sealed", encryption_key=KEY)
    assert sealed == clear
    assert sealed[-1][1] == "hit"


def test_centroids_are_searched_in_memory(sealed: Engine) -> None:
    build_twice(sealed)
    assert sealed.stats().health.routes_by == "memory"
    assert sealed.route(QUESTIONS[0]).is_admitted
    assert sealed.router.num_index_failures == 0


def test_a_wrong_key_or_none_is_said_in_one_line(open_engine: Opening, tmp_path: Path) -> None:
    open_engine(encryption_key=KEY).close()
    with pytest.raises(StoreError, match="is encrypted; give its key"):
        open_engine()
    with pytest.raises(StoreError, match="does not open the store"):
        open_engine(encryption_key=OTHER_KEY)
    with pytest.raises(ConfigError, match="encryption_key must be 32 bytes"):
        open_engine(encryption_key="short")
    open_engine(tmp_path / "clear").close()
    with pytest.raises(StoreError, match="lies in clear; build a new"):
        open_engine(tmp_path / "clear", encryption_key=KEY)


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", KEY)
    assert EngineConfig(encryption_key="env:OWN_KEY").encryption_key_bytes == bytes(range(32))
    assert KEY not in repr(EngineConfig(encryption_key=KEY))


def test_the_key_can_be_changed(open_engine: Opening, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open_engine(encryption_key=KEY) as engine:
        build_twice(engine)
        cold = ask(engine, QUESTIONS[0], reuse="off")
    with pytest.raises(StoreError, match="does not open"):
        change_key(path, bytes(32), bytes(32))
    change_key(path, bytes(range(32)), bytes(32))
    with pytest.raises(StoreError, match="does not open"):
        open_engine(encryption_key=KEY)
    with open_engine(encryption_key=OTHER_KEY) as engine:
        done = ask(engine, QUESTIONS[0])
    assert done.usage.cached_tokens > 64
    assert done.token_ids == cold.token_ids
    open_engine(tmp_path / "clear").close()
    with pytest.raises(StoreNotFound):
        change_key(tmp_path / "nothing", bytes(32), bytes(32))
    with pytest.raises(StoreError, match="made without"):
        change_key(tmp_path / "clear", bytes(32), bytes(32))


def test_processes_that_make_a_store_at_once_agree_on_its_key(tmp_path: Path) -> None:
    vaults = []

    def make() -> None:
        create_store(tmp_path / "store", bytes(32))
        vaults.append(open_vault(tmp_path / "store", bytes(32)))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({vault.put(b"x", "column") for vault in vaults}) == 1
    assert len(vaults) == 8


def test_a_store_that_another_process_has_just_made_is_opened(tmp_path: Path) -> None:
    create_store(tmp_path / "store", bytes(32))
    (tmp_path / "store/manifest.sqlite").write_bytes(b"")
    create_store(tmp_path / "store", bytes(32))
    assert open_vault(tmp_path / "store", bytes(32)).is_sealed


def test_a_lost_key_is_not_taken_for_a_store_in_the_clear(sealed: Engine, tmp_path: Path) -> None:
    build_twice(sealed)
    sealed.close()
    (tmp_path / "store/store.json").write_text("{")
    with pytest.raises(StoreError, match="put a copy of that file back"):
        Store.open(tmp_path / "store")


# what somebody else changes


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskBlocks]:
    opened = DiskBlocks(tmp_path, budget_bytes=1 << 24, vault=VAULT)
    yield opened
    opened.close()


def test_a_block_in_the_place_of_another_is_not_served(disk: DiskBlocks) -> None:
    ids = [disk.put(NAMESPACE, [n] * 64, make_block(seed=n)) for n in (1, 2)]
    assert None not in ids
    one, two = (disk.path(str(i)) for i in ids)
    shutil.copy(one, two)
    assert disk.get(str(ids[1])) is None
    assert disk.get(str(ids[0])) is not None
    assert disk.manifest.counters()["damaged_blocks"] == 1


def test_a_block_in_the_clear_is_foreign(disk: DiskBlocks, tmp_path: Path) -> None:
    (tmp_path / "clear").mkdir()
    clear = DiskBlocks(tmp_path / "clear", budget_bytes=1 << 24)
    own = clear.put(NAMESPACE, [1] * 64, make_block())
    assert own == disk.put(NAMESPACE, [1] * 64, make_block())
    assert own is not None
    shutil.copy(clear.path(own), disk.path(own))
    assert disk.get(own) is None
    assert disk.manifest.counters()["foreign_blocks"] == 1
    clear.close()


def test_a_damaged_manifest_is_made_again_from_sealed_blocks(tmp_path: Path) -> None:
    disk = DiskBlocks(tmp_path, budget_bytes=1 << 24, vault=VAULT)
    own = disk.put(NAMESPACE, range(64), make_block())
    disk.close()
    (tmp_path / "manifest.sqlite").write_bytes(b"no manifest at all" * 100)
    disk = DiskBlocks(tmp_path, budget_bytes=1 << 24, vault=VAULT)
    assert own is not None
    assert disk.get(own) is not None
    disk.close()


@pytest.mark.parametrize("without_digests", [False, True])
def test_an_answer_under_anothers_prompt_is_not_served(
    sealed: Engine, open_engine: Opening, tmp_path: Path, without_digests: bool
) -> None:
    vector = np.zeros(64, np.float32)
    for own in ("one", "two"):
        sealed.answers.put(Answer(own, own, own, 0.0), scope="s", vector=vector)
    sealed.close()
    with sqlite3.connect(tmp_path / "store/answers.sqlite") as db:
        db.execute("UPDATE answers SET answer = (SELECT answer FROM answers WHERE id = 'one')")
        if without_digests:
            db.execute("DROP TABLE answers_checks")
    db.close()
    engine = open_engine(encryption_key=KEY)
    assert engine.answers.get("two") is None
    assert engine.answers.faults() == [f"answers: {2 if without_digests else 1} damaged rows"]
    assert engine.check(repair=True).problems
    assert engine.check().problems == []


def test_an_answer_that_does_not_open_is_not_there(sealed: Engine, tmp_path: Path) -> None:
    for _ in range(2):
        ask(sealed, NEW, reuse="representative")
    vector = sealed.router.embedder.embed([NEW])[0]
    sealed.answers.put(Answer("1", NEW, "yes", 0.0), scope="s", vector=vector)
    store = sealed.answers
    store._run(lambda db: db.execute("UPDATE answers SET answer = x'00', question = x'11'"))
    assert store.get("1") is None
    assert store.nearest("s", vector) is None
    assert store.scoped("s") == store.all() == []
    assert ask(sealed, NEW, reuse="representative").token_ids


def test_a_damaged_question_stays_damaged_until_it_comes_again(
    sealed: Engine, tmp_path: Path
) -> None:
    build_twice(sealed)
    ask(sealed, NEW)
    sealed.flush()
    history = sealed._learner.history
    assert history is not None
    with sqlite3.connect(tmp_path / "store/history.sqlite", timeout=10) as db:
        damaged = "passages = zeroblob(40)"
        db.execute(f"UPDATE seen SET {damaged} WHERE number = (SELECT MAX(number) FROM seen)")
        db.execute(f"UPDATE seen SET {damaged} WHERE number = (SELECT MIN(number) FROM seen)")
    db.close()
    known = len(history.all())
    history.place([a.question for a in history.all()])
    history.settle_clock(0.0)
    history.replace_passages({})
    assert history.faults() == ["history: 2 damaged rows in seen"]
    ask(sealed, NEW)
    sealed.flush()
    assert history.faults() == ["history: 1 damaged rows in seen"]
    assert len(history.all()) == known + 1
    sealed.refit(lambda q: ask(sealed, q))
    assert sealed.forget(question=NEW).is_proven
    assert sealed.forget(everything=True).is_proven


def test_a_damaged_knowledge_base_is_found_and_goes_with_any_text(
    sealed: Engine, tmp_path: Path
) -> None:
    base = KnowledgeBase([Passage.of(PASSAGES["loan"])], sealed.router.embedder)
    base.save(sealed.store.path, sealed.store.vault)
    path = tmp_path / "store/passages.jsonl"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert any("passages.jsonl" in problem for problem in sealed.check().problems)
    with pytest.raises(ConfigError, match="cannot be read"):
        KnowledgeBase.load(sealed.store.path, sealed.router.embedder, sealed.store.vault)
    report = sealed.forget(question="whatever it was")
    assert report.is_proven
    assert not path.exists()
    assert sealed.check().problems == []


def test_a_chroma_folder_does_not_belong_there(sealed: Engine, tmp_path: Path) -> None:
    build_twice(sealed)
    sealed.close()
    (tmp_path / "store/chroma").mkdir()
    store = Store.open(tmp_path / "store", EngineConfig(encryption_key=KEY))
    assert any("chroma" in problem for problem in check_store(store).problems)
    check_store(store, repair=True)
    assert not (tmp_path / "store/chroma").exists()
    assert check_store(store).problems == []
    store.close()


# the parts


@given(st.binary(max_size=200), st.text(max_size=20))
def test_columns_are_sealed_steadily_and_bound_to_their_name(value: bytes, text: str) -> None:
    put = VAULT.put(value, "a")
    assert put == VAULT.put(value, "a")
    assert VAULT.take(put, "a") == value
    assert VAULT.take_text(VAULT.put_text(text, "a"), "a") == text
    assert len(put) == len(value) + VAULT.column_bytes
    for other, name in ((VAULT, "b"), (SealedVault(bytes([1] * 32)), "a")):
        with pytest.raises(CacheCorrupt):
            other.take(put, name)


@pytest.mark.parametrize("vault", [IN_THE_CLEAR, VAULT])
def test_a_column_of_another_type_is_damaged(vault: SealedVault) -> None:
    for value in (None, 3, 0.5):
        with pytest.raises(CacheCorrupt):
            vault.take(value, "a")
        with pytest.raises(CacheCorrupt):
            vault.take_text(value, "a")


def test_a_file_is_bound_to_its_name(tmp_path: Path) -> None:
    size = VAULT.write(tmp_path / "a", b"one ", memoryview(b"two"))
    assert size == (tmp_path / "a").stat().st_size
    assert VAULT.read(tmp_path / "a", 7) == b"one two"
    with pytest.raises(OSError, match="more than"):
        VAULT.read(tmp_path / "a", 6)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(CacheCorrupt):
        VAULT.read(tmp_path / "b", 7)
    (tmp_path / "c").write_bytes(b"in the clear")
    with pytest.raises(CacheMismatch):
        VAULT.read(tmp_path / "c", 99)


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)


@given(st.sets(tokens, max_size=20), tokens)
def test_sealed_tokens_have_the_same_neighbours(
    held: set[tuple[int, ...]], wanted: tuple[int, ...]
) -> None:
    found = []
    for vault in (IN_THE_CLEAR, VAULT):
        manifest = Manifest(Path(":memory:"), vault=vault)
        manifest.add(*map(_row, held))
        found.append(manifest.neighbours(NAMESPACE, wanted))
        assert {row.token_ids for row in manifest.rows()} == held
        manifest.close()
    assert found[0] == found[1]


def _row(ids: tuple[int, ...]) -> BlockRow:
    return BlockRow(block_id(NAMESPACE, ids), NAMESPACE, NAMESPACE, ids, 10)


def test_depth_and_worth_do_not_depend_on_sealing(tmp_path: Path) -> None:
    told = []
    for name, vault in (("clear", IN_THE_CLEAR), ("sealed", VAULT)):
        (tmp_path / name).mkdir()
        disk = DiskBlocks(tmp_path / name, budget_bytes=1 << 24, policy="cost", vault=vault)
        first = disk.put(NAMESPACE, range(64), make_block())
        assert first is not None
        disk.put(first, range(30), make_block(30))
        rows = disk.manifest._rows("SELECT depth, is_full FROM blocks ORDER BY depth")
        held = sorted(row.token_ids for row in disk.manifest.rows())
        told.append((rows, held))
        disk.close()
    assert told[0] == told[1]


def test_a_forgetting_under_way_lies_sealed(sealed: Engine, tmp_path: Path) -> None:
    log = ForgetLog(sealed.store.path, sealed.store.vault)
    with log.alone():
        log.begin("tenant Quibble", Wanted(questions=(NEW,)))
    assert seen(tmp_path, {"tenant": b"Quibble", "question": NEW.encode()}) == {}
    (intent,) = log.open_intents()
    assert (intent.tenant, intent.wanted.questions) == ("tenant Quibble", (NEW,))


def test_a_question_is_exported_and_forgotten(sealed: Engine) -> None:
    everything_in(sealed)
    assert sealed.export(question=NEW).counts["history"] == 1
    report = sealed.forget(question=NEW)
    assert report.is_proven, report
    assert sealed.export(question=NEW).entries == ()
    assert sealed.check().problems == []


def test_a_remote_without_a_key_is_sealed_with_the_same(
    open_engine: Opening, tmp_path: Path
) -> None:
    remote = f"file://{tmp_path / 'remote'}"
    one = open_engine(tmp_path / "one", encryption_key=KEY, remote=remote)
    needles = everything_in(one)
    assert any((tmp_path / "remote").rglob("*.raw"))
    assert seen(tmp_path, needles) == {}
    one.close()
    two = open_engine(tmp_path / "two", encryption_key=KEY, remote={"url": remote, "min_tokens": 1})
    assert ask(two, NEW).usage.cached_tokens > 64
