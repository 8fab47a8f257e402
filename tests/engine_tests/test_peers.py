"""The race of peers: its arithmetic, its pipe, and that peers of one precision agree."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from peers.figures import TARGETS, ratio, reached, summary
from peers.race import read_rows, rotated
from peers.report import into_page, report, tables
from peers.roster import SETTINGS, Way, replay_ways, table_ways
from peers.wire import PeerFailed, Remote
from peers.workers.cag import Cag
from peers.workers.ours import Ours
from peers.workers.plain import Plain

from centroidkv import Engine, Passage
from small_parts import HashEmbedder, make_llama

CONTEXT = ["A card that is lost is blocked at once.", "A wire abroad takes two days."]


def asked(way: str, number: int, first: float, total: float, **more: object) -> dict:
    row = {"round": number, "way": way, "peer": way.split(" [", maxsplit=1)[0], "ttft_s": first,
           "total_s": total, "tokens": 32, "prompt_tokens": 2000, "reused_tokens": 0,
           "question": f"q{number}", "text": f"t{number}"}  # fmt: skip
    return row | more


def test_a_ratio_is_that_of_the_medians_of_common_rounds() -> None:
    rows = [asked("CAG", n, 3.0 + n, 9.0) for n in range(4)]
    rows += [asked("ours", n, 1.0, 3.0) for n in (0, 1, 2)]
    found = ratio(rows, "CAG", "ours", "ttft_s")
    assert found is not None
    assert (found.value, found.n) == (4.0, 3)
    assert 3.0 <= found.low <= 4.0 <= found.high <= 5.0
    assert ratio(rows, "CAG", "ours", "ttft_s", by="mean").value == 4.0
    assert ratio(rows, "CAG", "absent", "ttft_s") is None


def test_whole_answers_of_other_lengths_are_not_compared() -> None:
    rows = [asked("CAG", 0, 1, 10), asked("CAG", 1, 1, 50, tokens=8)]
    rows += [asked("ours", n, 1, 5) for n in (0, 1)]
    found = ratio(rows, "CAG", "ours", "total_s")
    assert found is not None
    assert (found.value, found.n) == (2.0, 1)
    steps = ratio([asked("a", 0, 1, 32), asked("b", 0, 1, 16.5)], "a", "b", "step_s")
    assert steps is not None
    assert steps.value == 2.0


def test_targets_have_their_columns_and_the_best_setting_by_their_direction() -> None:
    rows = [asked("CAG", 0, 0.3, 3.0), asked("bare [float32]", 0, 0.2, 0.2)]
    rows += [asked("ours [float32]", 0, 0.25, 2.0), asked("ours [fast]", 0, 0.1, 1.0)]
    rows += [{"peer": "our answers", "answers_per_s": {"cached": 80.0, "representative": 70.0}}]
    told = {(r.figure, r.column): r for r in reached(rows, ["float32", "fast"])}
    hit = told["TTFT, CAG / ours", "float32"]
    assert hit.value == pytest.approx(1.2)
    assert hit.is_met
    best = told["TTFT, CAG / ours", "best"]
    assert (best.setting, best.value, best.is_met) == ("fast", pytest.approx(3.0), True)
    bare = told["TTFT / (bare forward of the new tokens + one embedding)", "best"]
    assert (bare.setting, bare.value, bare.is_met) == ("float32", pytest.approx(1.25), False)
    assert told["answers per second, answer cache, one core", "float32"].is_met
    assert not told["answers per second, representative, one core", "float32"].is_met
    missing = told["TTFT, transformers without reuse / ours", "float32"]
    assert (missing.value, missing.is_met, missing.n) == (None, None, 0)
    assert "not measured" in tables([], list(told.values()), [])


def test_every_target_names_ways_that_are_asked() -> None:
    names = {way.name for way in table_ways()}
    for target in TARGETS:
        for side in (target.over, target.under):
            assert side.format(s=SETTINGS[0].name) in names
    assert len(names) == len(table_ways())
    for name in ("tatqa", "cfpb", "chat", "mooncake", "bank"):
        assert len({w.name for w in replay_ways(name)}) == len(replay_ways(name))


def test_another_way_is_first_in_every_round_and_all_have_their_turn() -> None:
    ways: list[Way] = table_ways()
    firsts = [rotated(ways, n)[0].name for n in range(len(ways))]
    assert sorted(firsts) == sorted(w.name for w in ways)
    assert all(sorted(w.name for w in rotated(ways, n)) == sorted(firsts) for n in (1, 99))


def test_a_report_has_percentiles_shares_and_a_plot(tmp_path: Path) -> None:
    rows = [asked("transformers", n, 5.0, 7.0) for n in range(3)]
    rows += [asked("ours [float32]", n, n / 10 + 0.1, 2.0) for n in range(3)]
    rows[-1]["text"] = "another"
    rows += [{"peer": "ours", "loading_s": 3.0, "prepare_s": 1.5, "peak_mib": 800.0}]
    line = {r["way"]: r for r in summary(rows)}["ours [float32]"]
    assert line["ttft_p50_s"] == pytest.approx(0.2)
    assert line["ttft_p90_s"] == pytest.approx(0.28)
    assert line["same_text"] == pytest.approx(2 / 3)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- figures of table: begin -->\nold\n<!-- figures of table: end -->\nb\n")
    text = report("table", rows, ["float32"], header={"machine": {}}, out=tmp_path / "out")
    assert into_page(page, "table", text)
    written = page.read_text()
    assert "old" not in written
    assert written.startswith("a\n")
    assert "| TTFT, transformers without reuse / ours | float32 | at least 18 |" in written
    kept = json.loads((tmp_path / "out/table.json").read_text())
    assert kept["rows"] == rows
    assert (tmp_path / "out/table.png").read_bytes().startswith(b"\x89PNG")
    assert not into_page(page, "tatqa", text)


def test_rows_of_a_run_that_was_killed_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"round": 0, "way": "a"}\n{"round": 1, "w')
    assert read_rows(path) == [{"round": 0, "way": "a"}]
    assert read_rows(tmp_path / "none") == []


WORKER = """
from peers.wire import serve

class Echo:
    def __init__(self, word):
        print("a library that prints")
        self.word = word

    def op_say(self, times):
        print("and again")
        return {"said": self.word * times}

    def op_fail(self):
        raise ValueError("not today")

serve(Echo)
"""


def test_a_worker_answers_over_its_pipe_whatever_its_libraries_print(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    env = {**os.environ, "PYTHONPATH": str(Path(peers.__file__).parents[1])}
    command = [sys.executable, str(script)]
    log = tmp_path / "log"
    remote = Remote("echo", command, {"word": "ab"}, env=env, log=log)
    try:
        assert remote.loading_s > 0
        assert remote.call("say", times=2)["said"] == "abab"
        with pytest.raises(PeerFailed, match="not today"):
            remote.call("fail")
        assert remote.call("say", times=1)["said"] == "ab"
    finally:
        remote.close()
    assert log.read_text().startswith("a library that prints")
    with pytest.raises(PeerFailed, match="wrong"):
        Remote("worker", command, {"wrong": 1}, env=env, log=log)


@pytest.fixture
def folder(tmp_path: Path, tokenizer) -> Iterator[str]:
    model = make_llama()
    model.generation_config.eos_token_id = 257
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    yield str(tmp_path / "model")


def test_peers_of_one_precision_give_the_same_tokens(folder: str, tmp_path: Path) -> None:
    with Engine.open(tmp_path / "store", model=folder, embedder=HashEmbedder()) as engine:
        engine.build(
            questions=["block my card", "wire money", "lost card"],
            retriever=lambda _: [Passage.of(t) for t in CONTEXT],
            num_clusters=1,
            radius_quantile=None,
        )
        question = "is my card blocked"
        found = [Passage.of(t) for t in CONTEXT]
        passages = [p.text for p in engine.compose(engine.route(question), found)]
        user = "\n".join(passages) + f"\nQuestion: {question}"
        text = engine.model.encode(user).text
    shared = text.index(passages[-1]) + len(passages[-1])
    request = {"user": user, "text": text, "shared": shared, "question": question,
               "found": CONTEXT, "passages": passages, "context": "one"}  # fmt: skip
    plain = Plain(model=folder, threads=1).op_ask(**request, max_tokens=12)
    cag = Cag(model=folder, threads=1)
    cag.op_warm(**request)
    answers = [cag.op_ask(**request, max_tokens=12) for _ in range(2)]
    own = Ours(
        model=folder,
        threads=1,
        store=str(tmp_path / "store"),
        settings={"embedder": HashEmbedder()},
    )
    own.op_warm(**request)
    hit = own.op_ask(**request, max_tokens=12)
    off = own.op_ask(**request, max_tokens=12, reuse="off")
    bare = own.op_bare(**request)
    own.close()
    assert {a["text"] for a in [plain, *answers, hit, off]} == {plain["text"]}
    assert {a["prompt_tokens"] for a in [plain, *answers, hit, off, bare]} == {
        plain["prompt_tokens"]
    }
    assert answers[0]["reused_tokens"] == answers[1]["reused_tokens"] == bare["reused_tokens"] > 64
    assert (hit["outcome"], hit["reason"]) == ("hit", "pinned_prefix")
    assert hit["is_composed_as_asked"]
    assert off["reused_tokens"] == 0
    assert all(0 < a["ttft_s"] <= a["total_s"] for a in [plain, *answers, hit, off, bare])
