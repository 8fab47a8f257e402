"""Questions and passages are read as users write them, and a bad line is named."""

import json
from pathlib import Path

import pytest

from centroidkv.errors import ConfigError
from centroidkv.knowledge import KnowledgeBase, Questions, read_passages, read_questions
from centroidkv.types import Passage
from small_parts import HashEmbedder


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "questions.csv"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return tmp_path / "passages.jsonl"


# questions


def test_questions_are_read_with_their_domains(csv: Path) -> None:
    csv.write_text('domain,question\ncards,"Lost, what now?"\n,"질문 ""둘"""\n', "utf-8")
    assert read_questions(csv) == Questions(["Lost, what now?", '질문 "둘"'], ["cards", ""])


def test_without_domains_they_are_blank(csv: Path) -> None:
    csv.write_text("question,n\na,1\nb\n")
    assert read_questions(csv) == Questions(["a", "b"], ["", ""])


def test_blank_questions_are_skipped_with_their_domains(csv: Path) -> None:
    csv.write_text("question,domain\na,x\n  ,y\n\n,z\nb,w\n")
    assert read_questions(csv) == Questions(["a", "b"], ["x", "w"])


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_excel_saves_is_read(csv: Path, newline: str) -> None:
    text = newline.join(["question,domain", '"two', 'lines",x', "b,y", ""])
    csv.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_questions(csv) == Questions([f"two{newline}lines", "b"], ["x", "y"])


@pytest.mark.parametrize("odd", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_newlines_end_a_line_of_a_csv(csv: Path, odd: str) -> None:
    csv.write_text(f"question,domain\none{odd}half,x\nb,y\n", "utf-8")
    assert read_questions(csv) == Questions([f"one{odd}half", "b"], ["x", "y"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"frage,domain\na,b\n", r"no column 'question' \(found: frage, domain\)"),
        (b"question\n", "no questions below its header"),
        (b"question\n \n\n", "no questions below its header"),
        (b"question\nna\xefve\n", r"not UTF-8 \(byte 11\)"),
        ("question\na\n".encode("utf-16"), "not UTF-8"),
        (b"question\na\n" + b"x" * 200_000 + b"\n", r"line 3"),
        (b"x" * 200_000 + b"\nquestion\n", r"questions\.csv"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(csv: Path, content: bytes, message: str) -> None:
    csv.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_questions(csv)
    assert str(csv) in str(caught.value)


@pytest.mark.parametrize("read", [read_questions, read_passages])
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, read) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match="cannot read") as caught:
            read(path)
        assert str(path) in str(caught.value)


# passages


def test_passages_are_read_with_their_metadata(lines: Path) -> None:
    rows = [{"id": 1, "text": " cards ", "title": "Karten"}, {"id": "b", "text": "대출"}]
    lines.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", "utf-8")
    one, two = read_passages(lines)
    assert (one.text, one.metadata) == ("cards", {"id": 1, "title": "Karten"})
    assert (two.text, two.metadata) == ("대출", {"id": "b"})
    assert one.id == Passage.of("cards", {"id": 1, "title": "Karten"}).id


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\u0085"])
def test_only_newlines_end_a_line_of_json(lines: Path, odd: str) -> None:
    """JSON may hold these as they are, and PDF extraction is full of them."""
    row = {"id": 1, "text": f"one{odd}half"}
    lines.write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    assert [p.text for p in read_passages(lines)] == [f"one{odd}half"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 3: not JSON"),
        ("[1, 2]", "line 3: needs an object"),
        ('"text"', "line 3: needs an object"),
        ('{"id": 1}', "line 3: needs an object with 'id' and 'text'"),
        ('{"text": "a"}', "line 3: needs an object with 'id' and 'text'"),
        ('{"id": 1, "text": "  "}', "line 3: the text is blank"),
        ('{"id": 1, "text": null}', "line 3: "),
        ('{"id": 1, "text": ["a"]}', "line 3: "),
        ("[" * 100_000, "line 3: "),
    ],
    ids=lambda value: value[:30],
)
def test_a_bad_passage_is_named_with_its_line(lines: Path, line: str, message: str) -> None:
    lines.write_text('{"id": 0, "text": "a"}\n\n' + line + '\n{"id": 2, "text": "b"}\n')
    with pytest.raises(ConfigError, match=message) as caught:
        read_passages(lines)
    assert str(lines) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "no passages"), (b"\n \n", "no passages"), (b"\xff", "UTF-8")]
)
def test_a_file_without_passages_is_named(lines: Path, content: bytes, message: str) -> None:
    lines.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_passages(lines)
    assert str(lines) in str(caught.value)


# the knowledge base


def passages(*texts: str) -> list[Passage]:
    return [Passage.of(t, {"id": i}) for i, t in enumerate(texts)]


def test_the_nearest_passages_come_best_first() -> None:
    texts = ["block a lost card", "repay a loan early", "send a wire abroad"]
    base = KnowledgeBase(passages(*texts), HashEmbedder())
    assert base.search("send a wire abroad", k=1)[0].text == texts[2]
    found = base.search("a lost card", k=3)
    assert found[0].text == texts[0] and len(found) == 3
    assert len(base.search("a card", k=99)) == 3


def test_a_title_is_searched_too() -> None:
    plain = Passage.of("see below", {"id": 1})
    titled = Passage.of("see below", {"id": 2, "title": "lost card"})
    assert KnowledgeBase([plain, titled], HashEmbedder()).search("lost card", 1) == [titled]


def test_a_saved_knowledge_base_comes_back_as_it_was(tmp_path: Path) -> None:
    made = passages("cards", "한국어 🏦", 'quote " and \\', "two\nlines")
    KnowledgeBase(made, HashEmbedder()).save(tmp_path)
    again = KnowledgeBase.load(tmp_path, HashEmbedder())
    assert again.passages == made
    assert again.search("cards", 1) == made[:1]


@pytest.mark.parametrize("odd", ["\u2028", "\u0085"])
def test_a_saved_line_separator_comes_back(tmp_path: Path, odd: str) -> None:
    made = passages(f"one{odd}half")
    KnowledgeBase(made, HashEmbedder()).save(tmp_path)
    assert KnowledgeBase.load(tmp_path, HashEmbedder()).passages == made


def test_passages_without_an_id_of_their_own_come_back(tmp_path: Path) -> None:
    made = [Passage.of("cards"), Passage.of("loans", {"title": "Loans"})]
    KnowledgeBase(made, HashEmbedder()).save(tmp_path)
    again = KnowledgeBase.load(tmp_path, HashEmbedder()).passages
    assert [p.text for p in again] == ["cards", "loans"]


def test_a_store_without_passages_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="centroidkv build --questions"):
        KnowledgeBase.load(tmp_path, HashEmbedder())


def test_many_questions_find_what_each_finds_alone() -> None:
    embedder = HashEmbedder()
    base = KnowledgeBase([Passage.of(f"lost card {w}") for w in "abcdefgh"], embedder)
    asked = [f"card {w} lost" for w in "hgfe"] + ["nothing of it"]
    found = base.search_many(embedder.embed(asked), 3)
    assert found == [base.search(q, 3) for q in asked]
    assert base(asked[0]) == base.search(asked[0])
