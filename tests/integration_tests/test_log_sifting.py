"""A log as people write, sifted with the bundled embedder."""

import pytest

from centroidkv.config import EngineConfig
from centroidkv.opening import open_embedder
from centroidkv.preparing.sifting import sift, why_dropped
from centroidkv.protocols import Embedder

ASKS = [
    "hey there, somebody stole my wallet and my debit card was in it",
    "what would an overdraft cost me",
    "i moved house, where do i tell you the new address",
    "Can you explain how the index fund savings plan works?",
    "my mortgage application was turned down, why",
    "the app says my transfer failed but the money is gone",
    "is there a limit on cash withdrawals abroad",
]
RESTS = [
    "hello there",
    "good evening, how are you doing today",
    "yes that's the right one",
    "no thats everything, thank you so much for your help",
    "my name is Maria Lopez",
    "the last four are 7731",
    "sure take your time",
    "it was on the 3rd of May around noon",
    "thanks bye",
]


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return open_embedder("bundled:minilm", EngineConfig())


@pytest.mark.parametrize("turn", ASKS)
def test_turns_that_ask_are_kept(minilm: Embedder, turn: str) -> None:
    assert why_dropped([turn], minilm) == [""]


@pytest.mark.parametrize("turn", RESTS)
def test_turns_that_ask_nothing_are_dropped(minilm: Embedder, turn: str) -> None:
    assert why_dropped([turn], minilm) != [""]


def test_a_log_becomes_its_questions(minilm: Embedder) -> None:
    turns = [t for pair in zip(ASKS, RESTS, strict=False) for t in pair]
    assert sift(turns, minilm).questions == ASKS
