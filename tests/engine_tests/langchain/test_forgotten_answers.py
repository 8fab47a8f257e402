"""An answer cache serves no answer to what was forgotten, wherever in the prompt it stood."""

from collections.abc import Callable

import pytest
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import Generation

from centroidkv import Engine
from centroidkv.langchain import CentroidKVAnswerCache
from centroidkv.serving.answers import Answer

ASKED = "누가 블로킹 the card of Ann Lee"
OTHER = "Context: cards.\nwhat does a wire cost"
PROMPTS = {
    "last line of a paragraph": f"Context: a lost card is blocked.\nBe brief.\n{ASKED}",
    "behind a marker": f"Answer. Question: please\n{ASKED}",
    "earlier in a text": f"Human: {ASKED}\nAI: the app\n\nQuestion: and then",
    "earlier turn": dumps([HumanMessage(ASKED), AIMessage("the app"), HumanMessage("and then")]),
    "part": dumps([SystemMessage("brief"), HumanMessage([{"type": "text", "text": ASKED}])]),
    "parts": dumps([HumanMessage([{"type": "text", "text": t} for t in (ASKED[:9], ASKED[9:])])]),
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_forgotten_question_is_answered_no_more(engine: Engine, prompt: str) -> None:
    cache = CentroidKVAnswerCache(engine=engine)
    for text in (prompt, OTHER):
        cache.update(text, "llm", [Generation(text="the app does")])
    assert cache.lookup(prompt, "llm") == [Generation(text="the app does")]
    assert engine.export(question=ASKED).counts == {"answers": 1}
    assert engine.forget(question=ASKED).is_proven
    assert cache.lookup(prompt, "llm") is None
    assert cache.lookup(OTHER, "llm") is not None


def test_a_forgotten_passage_takes_the_answers_made_from_it(engine: Engine) -> None:
    cache = CentroidKVAnswerCache(engine=engine)
    prompt = "A lost card is blocked in the app.\n\nQuestion: who blocks it"
    cache.update(prompt, "llm", [Generation(text="you do")])
    assert engine.forget(passage="A lost card is blocked in the app.").is_proven
    assert cache.lookup(prompt, "llm") is None


def test_what_redact_changes_is_not_kept_and_goes_with_any_text(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(redact=lambda text: text.replace("Ann Lee", "[name]"))
    cache = CentroidKVAnswerCache(engine=engine)
    prompt = PROMPTS["earlier turn"]
    cache.update(prompt, "llm", [Generation(text="the app does")])
    (kept,) = engine.answers.all()
    assert "Lee" not in kept.answer
    assert engine.forget(question=ASKED).is_proven
    assert cache.lookup(prompt, "llm") is None


def test_an_answer_of_an_earlier_version_is_served_and_goes_with_any_text(engine: Engine) -> None:
    cache = CentroidKVAnswerCache(engine=engine)
    cache.update(OTHER, "llm", [Generation(text="twenty")])
    (kept,) = engine.answers.all()
    before = '[{"text": "twenty", "info": null}]'
    vector = engine.router.embedder.embed(["a"])[0]
    engine.answers.put(Answer(kept.id, "", before, 0.0), scope="s", vector=vector)
    assert cache.lookup(OTHER, "llm") == [Generation(text="twenty")]
    engine.forget(question=ASKED)
    assert cache.lookup(OTHER, "llm") is None


def test_a_picture_of_a_prompt_is_not_kept_with_its_answer(engine: Engine) -> None:
    cache = CentroidKVAnswerCache(engine=engine)
    picture = f"data:image/png;base64,{'A' * 500}"
    parts = [
        {"type": "text", "text": ASKED},
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "image", "base64": "B" * 500, "mime_type": "image/png"},
    ]
    cache.update(dumps([HumanMessage(parts)]), "llm", [Generation(text="a card")])
    (kept,) = engine.answers.all()
    assert len(kept.answer) < 500
    assert engine.export(question=ASKED).counts == {"answers": 1}
