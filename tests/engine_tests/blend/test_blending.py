"""Passages' KV at any position: what is placed, what is said of it, and what is never stored."""

import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from blend_parts import (
    ASKED,
    CARD,
    LOAN,
    SYSTEM,
    WIRE,
    ask_about,
    blending_model,
    learn,
    plain,
    rendered,
)
from centroidkv import Engine, Message, Passage
from centroidkv.blend import gate_prompts
from centroidkv.blend.gate import BlendGate
from centroidkv.blend.gate_trial import GateFigures, GateTrial
from centroidkv.blend.heads import MOST_HEADS, Head
from centroidkv.blend.learning import MOST_LEADING, Shown
from centroidkv.blend.spans import Unit, locate
from centroidkv.errors import BlendRefused, ConfigError, ContextTooLong
from centroidkv.models.blend import Blender
from centroidkv.models.loading import wrap_model
from centroidkv.models.packed import NotPackable
from centroidkv.models.transformers_model import TransformersModel
from small_parts import HashEmbedder, make_tokenizer
from word_bank import PASSAGES


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> TransformersModel:
    return blending_model(tokenizer)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, model: TransformersModel) -> Path:
    """The gate's figures, found once: trying takes longer than most tests here."""
    path = tmp_path_factory.mktemp("tried") / "store"
    for share in (0.15, 1.0):
        with Engine.open(
            path, model=model, embedder=HashEmbedder(), reuse="blend", blend_share=share
        ):
            pass
    return path / "gate"


@pytest.fixture
def blending(
    open_engine: Callable[..., Engine], gate: Path, tmp_path: Path
) -> Callable[..., Engine]:
    def opening(**options: object) -> Engine:
        store = tmp_path / "store"
        engine = open_engine(store)  # makes the folder
        engine.close()
        shutil.copytree(gate, store / "gate", dirs_exist_ok=True)
        return open_engine(store, **{"reuse": "blend", **options})

    return opening


def test_passages_seen_before_are_placed_in_another_order(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    done = ask_about(engine, [LOAN, WIRE, CARD])
    usage = done.usage
    assert (usage.outcome, usage.reason, usage.approximate) == ("hit", "blended", True)
    assert usage.blend_problem is None
    behind = len(WIRE.strip()) + len(CARD.strip())  # tokens are bytes
    assert behind - 6 <= usage.blended_tokens <= behind
    assert usage.reused_tokens >= len(f"{SYSTEM}\n\n{LOAN.strip()}")  # as it is there
    assert 0 < usage.recomputed_tokens <= 0.16 * usage.blended_tokens
    assert usage.computed_tokens == (
        usage.prompt_tokens - usage.reused_tokens - usage.blended_tokens + usage.recomputed_tokens
    )
    assert usage.tier == "memory"
    exact = ask_about(engine, [LOAN, WIRE, CARD], reuse="off")
    assert len(done.token_ids) == len(exact.token_ids) > 0


def test_all_computed_again_gives_the_answers_of_a_prefill(blending) -> None:
    engine = blending(blend_share=1.0)
    learn(engine, CARD, WIRE, LOAN)
    for texts in ([LOAN, CARD, WIRE], [WIRE, LOAN]):
        done = ask_about(engine, texts)
        assert done.usage.recomputed_tokens == done.usage.blended_tokens > 0
        assert done.token_ids == ask_about(engine, texts, reuse="off").token_ids


def test_nothing_blended_is_found_by_an_exact_request(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    shuffled = [LOAN, WIRE, CARD]
    blended = ask_about(engine, shuffled)
    engine.flush()
    assert blended.usage.blended_tokens > 0
    head = len(engine.model.encode(f"{SYSTEM}\n\n{LOAN}").token_ids)
    # Neither in the store nor in the arena that the blended request left.
    exact = ask_about(engine, shuffled, reuse="exact")
    assert exact.usage.reused_tokens <= head
    assert not exact.usage.approximate
    assert exact.token_ids == ask_about(engine, shuffled, reuse="off").token_ids
    assert engine.check().is_clean


def test_a_conversation_keeps_only_what_is_exact(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    engine.compose(engine.route(ASKED), [Passage.of(t) for t in (LOAN, WIRE, CARD)])
    turns = [Message("user", rendered([LOAN, WIRE, CARD], ASKED))]
    first = engine.generate(turns, max_tokens=8, question=ASKED)
    assert first.usage.blended_tokens > 0
    engine.flush()
    turns += [Message("assistant", first.text), Message("user", "and then?")]
    exact = engine.generate(turns, max_tokens=8, reuse="exact")
    assert exact.usage.reused_tokens <= len(engine.model.encode(f"{SYSTEM}\n\n{LOAN}"))
    assert exact.token_ids == engine.generate(turns, max_tokens=8, reuse="off").token_ids


def test_requests_at_once_do_not_mix(blending) -> None:
    engine = blending(blend_share=1.0)  # so that every answer is that of a prefill
    learn(engine, CARD, WIRE, LOAN)
    orders = [[LOAN, CARD, WIRE], [WIRE, LOAN, CARD], [LOAN, WIRE, CARD], [WIRE, CARD, LOAN]]
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda texts: plain(engine, texts), orders * 2))
    blended = [d.usage.blended_tokens for d in done]
    assert min(blended) > 0
    for texts, answer in zip(orders, done, strict=False):
        assert answer.token_ids == plain(engine, texts, reuse="off").token_ids
    assert engine.check().is_clean


def test_blocks_of_passages_are_no_prefix_of_anything(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE)
    bare = engine.generate(CARD, max_tokens=4, reuse="exact", chat_template=False)
    assert bare.usage.reused_tokens == 0


def test_it_is_kept_over_a_restart_and_read_from_disk(blending, open_engine, tmp_path) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    first = ask_about(engine, [LOAN, WIRE, CARD])
    engine.close()
    again = ask_about(open_engine(reuse="blend"), [LOAN, WIRE, CARD])
    assert (again.usage.reason, again.usage.tier) == ("blended", "disk")
    assert again.usage.loaded_levels == ("raw",)
    assert again.usage.loaded_bytes > 0
    assert again.token_ids == first.token_ids


def test_only_what_lies_behind_the_exact_prefix_is_placed(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    head = len(f"{SYSTEM}\n\n{CARD}")
    done = ask_about(engine, [CARD, LOAN, WIRE])
    assert done.usage.reused_tokens >= head - 64
    assert len(LOAN) + len(WIRE) - 9 <= done.usage.blended_tokens <= len(LOAN) + len(WIRE)


def test_a_second_passage_unknown_is_computed_and_learnt(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE)
    done = ask_about(engine, [LOAN, WIRE])
    assert (done.usage.outcome, done.usage.blend_problem) == ("partial", "passages_unseen")
    assert 0 < done.usage.blended_tokens <= len(WIRE)
    engine.flush()
    done = ask_about(engine, [WIRE, LOAN], "another question")
    assert done.usage.blend_problem is None
    assert done.usage.reused_tokens > len(WIRE)
    assert done.usage.blended_tokens > len(LOAN) - 9


def test_without_learning_nothing_is_computed_behind_answers(blending) -> None:
    engine = blending(blend_learns=False)
    learn(engine, CARD, WIRE)
    assert ask_about(engine, [WIRE, CARD]).usage.blend_problem == "head_unseen"


def test_what_a_prompt_may_begin_with() -> None:
    head = Head((1, 2, 3, 4))
    one, two = Unit((5,) * 20, (9,)), Unit((6,) * 20)
    assert Shown(head.token_ids, [one, two]).firsts(head) == [one, two]
    title = (7, 7, 7)
    led = Shown((*head.token_ids, *title), [one, two]).firsts(head)
    assert led == [Unit(one.token_ids, (*title, 9))]  # of the other, no title is known
    turns = (8,) * MOST_LEADING
    assert Shown((*head.token_ids, *turns), [one, two]).firsts(head) == []


def test_another_head_has_passages_of_its_own(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE)
    other = f"Be brief, and say where it stands.\n\n{WIRE}\n\n{CARD}\n\nQuestion: {ASKED}"
    done = engine.generate(other, max_tokens=4, question=ASKED)
    assert (done.usage.blended_tokens, done.usage.blend_problem) == (0, "head_unseen")


def test_tenants_do_not_share_passages(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE)
    other = engine.for_tenant("other")
    assert ask_about(other, [WIRE, CARD]).usage.blended_tokens == 0
    assert ask_about(engine, [WIRE, CARD]).usage.blended_tokens > 0


# bad input: an answer all the same, and the reason


def test_a_passage_within_another_is_part_of_it(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE)
    engine.compose(engine.route(ASKED), [Passage.of(t) for t in (WIRE, CARD, CARD[:80])])
    done = plain(engine, [WIRE, CARD])
    assert done.usage.blend_problem == "passages_overlap"
    assert len(WIRE) < done.usage.blended_tokens <= len(WIRE) + len(CARD)


def test_the_same_passage_twice_is_placed_once(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE)
    ask_about(engine, [WIRE, CARD])
    done = plain(engine, [WIRE, CARD, WIRE])
    assert done.usage.blend_problem == "passage_repeated"
    assert len(WIRE) < done.usage.blended_tokens <= len(WIRE) + len(CARD)
    assert len(done.token_ids) == 8


def test_empty_passages_are_none(blending) -> None:
    done = ask_about(blending(), ["", "   "])
    assert (done.usage.blend_problem, done.usage.approximate) == ("no_passages", False)


def test_a_question_before_its_passages_is_answered_exactly(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE)
    ask_about(engine, [CARD, WIRE], "why so")
    done = engine.generate(f"why so\n\n{WIRE}\n\n{CARD}", max_tokens=4, question="why so")
    assert done.usage.blend_problem == "question_before_context"


def test_a_damaged_passage_costs_time_alone(blending, open_engine, tmp_path) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    engine.close()
    for path in (tmp_path / "store" / "blocks").glob("??/*"):
        path.write_bytes(path.read_bytes()[:-9])
    engine = open_engine(reuse="blend")
    done = ask_about(engine, [LOAN, WIRE, CARD])
    assert (done.usage.blend_problem, done.usage.blended_tokens) == ("block_damaged", 0)
    assert done.token_ids == ask_about(engine, [LOAN, WIRE, CARD], reuse="off").token_ids


def test_one_damaged_passage_does_not_keep_others_from_being_placed(
    blending, open_engine, tmp_path
) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    blend = engine._policies.blend
    (head,) = (h for h in blend.heads.known() if h.run_up)
    prompt = engine.model.encode(rendered([LOAN, WIRE, CARD], ASKED))
    wire, _ = locate(prompt, [WIRE, CARD], question=ASKED).spans
    step = blend.passages.find(head, wire.unit(prompt.token_ids).token_ids).steps[1]
    engine.close()
    (path,) = (tmp_path / "store" / "blocks").glob(f"??/*{step.id}*")
    path.write_bytes(path.read_bytes()[:-9])
    engine = open_engine(reuse="blend")
    usage = ask_about(engine, [LOAN, WIRE, CARD]).usage
    assert (usage.blend_problem, usage.reason) == ("block_damaged", "blended")
    assert len(CARD) - 9 <= usage.blended_tokens <= len(CARD)
    engine.flush()
    again = ask_about(engine, [LOAN, CARD, WIRE]).usage  # computed anew behind the answer
    assert (again.blend_problem, again.blended_tokens > len(CARD)) == (None, True)


def test_a_store_that_cannot_be_read_costs_time_alone(blending, open_engine, monkeypatch) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    engine.close()
    engine = open_engine(reuse="blend")

    def gone(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(type(engine.store.blocks), "where", gone)
    done = ask_about(engine, [LOAN, WIRE, CARD])
    assert (done.usage.blend_problem, done.usage.blended_tokens) == ("store_failed", 0)
    assert done.token_ids == ask_about(engine, [LOAN, WIRE, CARD], reuse="off").token_ids


def test_a_prompt_without_known_passages_says_so(blending) -> None:
    done = blending().generate("Hello there", max_tokens=4)
    assert done.usage.blend_problem == "no_passages"


def test_a_passage_longer_than_the_context_is_refused_as_ever(blending) -> None:
    engine = blending()
    for reuse in ("blend", "exact"):
        with pytest.raises(ContextTooLong):
            ask_about(engine, [CARD, "far too long " * 400], reuse=reuse)


# markers


def marked(*texts: str, question: str = ASKED) -> str:
    return SYSTEM + "".join(f"\n## {t}" for t in texts) + f"\n##\nQuestion: {question}"


def test_a_marker_tells_where_passages_stand(blending) -> None:
    engine = blending(passage_marker="##")
    for texts in ([CARD, WIRE, LOAN], [WIRE, CARD, LOAN]):
        engine.generate(marked(*texts), max_tokens=4)
        engine.flush()
    done = engine.generate(marked(LOAN, CARD, WIRE), max_tokens=4)
    assert (done.usage.reason, done.usage.blend_problem) == ("blended", None)
    assert done.usage.blended_tokens > 2 * len(WIRE)


def test_a_marker_in_the_question_is_answered_exactly(blending) -> None:
    engine = blending(passage_marker="##")
    prompt = marked(CARD, WIRE, question="what ## is this")
    assert engine.generate(prompt, max_tokens=4).usage.blend_problem == "marker_in_question"


def test_a_marked_passage_that_stands_there_twice_is_placed_once(blending) -> None:
    engine = blending(passage_marker="##")
    for texts in ([CARD, WIRE], [CARD, WIRE, LOAN]):
        engine.generate(marked(*texts), max_tokens=4)
        engine.flush()
    usage = engine.generate(marked(WIRE, CARD, WIRE), max_tokens=4).usage
    assert usage.blend_problem == "passage_repeated"
    assert len(WIRE) < usage.blended_tokens <= len(WIRE) + len(CARD)


def test_an_answer_left_unread_teaches_nothing(blending) -> None:
    # Its generator may be closed by the garbage collector, in a thread that holds any lock.
    engine = blending()
    for texts in ([CARD, WIRE], [WIRE, CARD]):
        engine.compose(engine.route(ASKED), [Passage.of(t) for t in texts])
        stream = engine.stream(rendered(texts, ASKED), max_tokens=8, question=ASKED)
        next(stream)
        stream.close()
        engine.flush()
    assert ask_about(engine, [WIRE, CARD]).usage.blend_problem == "head_unseen"


def test_nothing_is_computed_ahead_when_the_program_ends(blending, monkeypatch) -> None:
    engine = blending()
    learn(engine, CARD, WIRE)
    assert not [t for t in threading.enumerate() if t.name == "centroidkv-passages"]
    monkeypatch.setattr(threading, "main_thread", lambda: threading.Thread())
    learn(engine, CARD, WIRE, LOAN)
    monkeypatch.undo()
    assert ask_about(engine, [LOAN, WIRE]).usage.blend_problem == "passages_unseen"
    engine.flush()
    assert ask_about(engine, [WIRE, LOAN]).usage.blend_problem is None
    engine.close()
    shown = Shown((1, 2, 3, 4), [Unit((5,) * 20)])
    assert not engine._policies.blend.passage_learner.submit(shown)


def test_passages_are_kept_at_the_precision_of_the_store(blending) -> None:
    engine = blending()
    engine.codec_report([f"{CARD} {WIRE}"], num_tokens=4, most_kl=100.0)
    engine.close()
    engine = blending(kv_precision="q8", blend_share=1.0)
    learn(engine, CARD, WIRE, LOAN)
    assert {row.level for row in engine.store.blocks.disk.manifest.rows()} == {"q8"}
    done = ask_about(engine, [LOAN, WIRE, CARD])
    assert (done.usage.reason, done.usage.kv_precision) == ("blended", "q8")
    assert done.token_ids == ask_about(engine, [LOAN, WIRE, CARD], reuse="off").token_ids
    assert engine.check().is_clean


def test_whatever_breaks_off_a_blend_the_prompt_is_computed(blending, model, monkeypatch) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)

    def odd(*_: object, **__: object) -> None:
        raise NotPackable("a layer without a number")

    monkeypatch.setattr(Blender, "_run", odd)
    done = ask_about(engine, [LOAN, WIRE, CARD])
    assert (done.usage.blend_problem, done.usage.approximate) == ("blend_failed", False)
    assert done.token_ids == ask_about(engine, [LOAN, WIRE, CARD], reuse="off").token_ids


# the gate


def test_a_model_below_the_bar_is_refused_with_its_figures(blending, open_engine, tmp_path) -> None:
    blending().close()
    for path in (tmp_path / "store" / "gate").glob("*.json"):
        text = (
            '{"first_kl": 0.2, "kl": 0.31, "agreement": 0.7, "num_prompts": 4, "num_tokens": 128}'
        )
        path.write_text(text, encoding="utf-8")
    with pytest.raises(BlendRefused, match=r"KL 0\.310 .* agreement 0\.70"):
        open_engine(reuse="blend")
    held = [fd.resolve() for fd in Path("/proc/self/fd").glob("*")]
    assert not [path for path in held if path.is_relative_to(tmp_path)]
    engine = open_engine()
    done = ask_about(engine, [CARD, WIRE], reuse="blend")
    assert (done.usage.blend_problem, done.usage.approximate) == ("gate_failed", False)
    with pytest.raises(BlendRefused):
        engine.prefill_passages(lambda q: ask_about(engine, [], q), [CARD])


def test_a_model_that_cannot_blend_answers_exactly(open_engine, tokenizer) -> None:
    from centroidkv.models.loading import wrap_model
    from small_parts import make_llama

    engine = open_engine(model=wrap_model(make_llama(), tokenizer), reuse="blend")
    done = ask_about(engine, [CARD, WIRE])
    assert (done.usage.blend_problem, done.usage.reason) == ("model_unsupported", "empty_store")


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}"


@pytest.mark.parametrize("template", [None, NO_SYSTEM])
def test_a_model_is_tried_whatever_its_template_takes(model, template) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    trial = GateTrial(wrap_model(model.model, tokenizer), 0.15)
    prompt = trial._encoded(0)
    assert all(text in prompt.text for text in (gate_prompts.SYSTEM, *gate_prompts.shown_in(0)))


@pytest.mark.parametrize("text", ["[" * 9999, "[]", '{"first_kl": "x"}', '{"kl": 1e999}'])
def test_damaged_figures_are_found_again(model, monkeypatch, tmp_path, text) -> None:
    monkeypatch.setattr(GateTrial, "run", lambda _: GateFigures(0.0, 0.0, 1.0, 4, 128))
    assert BlendGate(tmp_path, model, 0.15).refusal() is None
    (path,) = tmp_path.glob("*.json")
    path.write_text(text, encoding="utf-8")
    assert BlendGate(tmp_path, model, 0.15).refusal() is None


def test_a_trial_that_breaks_off_is_a_refusal(model, monkeypatch, tmp_path) -> None:
    def broken(_: GateTrial) -> GateFigures:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(GateTrial, "run", broken)
    refusal = BlendGate(tmp_path, model, 0.15).refusal()
    assert refusal is not None
    assert (refusal.problem, "out of memory" in refusal.why) == ("model_unsupported", True)


# forgetting


@pytest.mark.parametrize("forgotten", [CARD, SYSTEM], ids=["of the run-up", "the head"])
def test_what_was_computed_behind_a_text_is_forgotten_with_it(blending, forgotten: str) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    blend = engine._policies.blend
    (head,) = (h for h in blend.heads.held() if h.run_up)
    root = blend.passages.root(head)
    assert _rows(engine, root)
    assert "heads" in engine.export(passage=forgotten.strip()).counts
    assert engine.forget(passage=forgotten.strip()).is_proven
    assert not _rows(engine, root)
    usage = ask_about(engine, [LOAN, WIRE]).usage
    assert usage.blend_problem == "head_unseen"
    # What has seen nothing but the head goes with the head alone.
    assert (usage.reused_tokens > len(LOAN)) == (forgotten == CARD)


def test_another_passage_leaves_the_head_and_what_is_behind_it(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    late = "Anything that is said of ferries and their timetables is said somewhere else. " * 3
    for _ in range(2):
        ask_about(engine, [late, CARD, WIRE])
        engine.flush()
    assert engine.forget(passage=late.strip()).is_proven
    done = ask_about(engine, [LOAN, WIRE, CARD])
    assert (done.usage.reason, done.usage.blend_problem) == ("blended", None)


def test_what_is_behind_a_head_that_made_way_goes_with_anything(blending) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    blend = engine._policies.blend
    (head,) = (h for h in blend.heads.known() if h.run_up)
    for number in range(MOST_HEADS):
        blend.heads.add([200 + number] * 9)
    root = blend.passages.root(head)
    assert _rows(engine, root)
    assert engine.forget(passage="something else altogether").is_proven
    assert not _rows(engine, root)
    assert not [b for b in engine.store.blocks.memory.used_s() if _root_of(engine, b) == root]


def test_what_is_computed_while_its_head_is_forgotten_is_not_kept(
    blending, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = blending()
    learn(engine, CARD, WIRE, LOAN)
    blend = engine._policies.blend
    (head,) = (h for h in blend.heads.known() if h.run_up)
    compute = blend.passage_learner._computed

    def forgetting(*given: object) -> object:
        for blocks in compute(*given):
            blend.heads.forget([head])
            yield blocks

    monkeypatch.setattr(blend.passage_learner, "_computed", forgetting)
    late = tuple(range(100, 180))
    assert blend.passage_learner.fill(head, [late]) == 0
    blend.passage_learner.fill_firsts(head, [Unit(late)])
    engine.flush()
    assert blend.passages.find(head, late).num_tokens == 0
    prompt = (*head.token_ids, *late)
    assert engine.store.blocks.match(engine._learner.namespace, prompt).num_tokens < len(prompt) - 1


def _rows(engine: Engine, root: str) -> list[object]:
    return list(engine.store.blocks.disk.manifest.rows("namespace = ?", root))


def _root_of(engine: Engine, block: str) -> str:
    piece = engine.store.blocks.memory.piece(block)
    return "" if piece is None else piece.parent


# offline


def test_a_knowledge_base_is_prefilled_once(blending) -> None:
    engine = blending()

    def chain(question: str) -> str:
        return ask_about(engine, [], question).text

    report = engine.prefill_passages(chain, PASSAGES.values())
    assert (report.num_passages, report.problems) == (3, {})
    assert report.stored == 3
    again = engine.prefill_passages(chain, PASSAGES.values())
    assert (again.stored, again.stored_tokens) == (0, 0)
    done = ask_about(engine, [LOAN, CARD, WIRE])
    assert (done.usage.outcome, done.usage.reason) == ("hit", "blended")
    assert done.usage.blend_problem is None
    assert engine.check().is_clean


def test_a_prefilled_passage_is_forgotten_by_its_id(blending, open_engine) -> None:
    engine = blending()
    passages = [Passage.of(text, {"source": "bank"}) for text in PASSAGES.values()]
    engine.prefill_passages(lambda q: ask_about(engine, [], q), passages)
    engine.close()
    again = open_engine(reuse="blend")
    assert again.export(passage=passages[0].text).counts["blocks"] > 0
    assert again.forget(passage=passages[0].id).is_proven
    assert again.export(passage=passages[0].text).entries == ()


def test_prompts_that_begin_each_in_its_own_way_are_a_problem_not_a_crash(blending) -> None:
    engine = blending()
    number = iter(range(10, 99))

    def chain(question: str) -> None:
        texts = [p.text for p in engine.compose(engine.route(question), [])]
        prompt = "\n\n".join([f"{next(number)} " * 40, *texts, question])
        engine.generate(prompt, max_tokens=1, question=question)

    texts = [f"{name} {text}" for name in "abc" for text in PASSAGES.values()]
    report = engine.prefill_passages(chain, texts)
    assert report.problems["head_unseen"] > 0
    assert 0 < report.stored < len(texts)


def test_prefilling_says_what_it_could_not_do(blending) -> None:
    engine = blending()
    with pytest.raises(ConfigError, match="no passages"):
        engine.prefill_passages(lambda q: None, [""])
    report = engine.prefill_passages(lambda q: None, [CARD, "long " * 1000])
    assert report.stored == 0
    assert len(report.problems) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"blend_share": 1.5},
        {"blend_share": "some"},
        {"passage_marker": "  "},
        {"reuse": "blend", "bitwise": True},
    ],
)
def test_settings_are_checked(open_engine, settings) -> None:
    with pytest.raises(ConfigError, match=r"blend|marker"):
        open_engine(**settings)
