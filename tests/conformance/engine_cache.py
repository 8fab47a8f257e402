"""A pytest plugin: every `InMemoryCache` of a test module becomes the answer cache of an engine.

The tests read a dictionary inside `InMemoryCache`; `_cache` shows them the answers in that shape,
through the cache's public methods alone.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.caches import RETURN_VAL_TYPE

from centroidkv import Engine
from centroidkv.langchain import CentroidKVAnswerCache
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from small_parts import HashEmbedder, make_llama, make_tokenizer

Key = tuple[str, str]


class Answers(MutableMapping[Key, RETURN_VAL_TYPE]):
    """The answers of a cache by prompt and model settings, as far as the cache still has them."""

    def __init__(self, cache: CentroidKVAnswerCache) -> None:
        self._of = cache
        self.put: dict[Key, None] = {}

    def __getitem__(self, key: Key) -> RETURN_VAL_TYPE:
        found = self._of.lookup(*key)
        if found is None:
            raise KeyError(key)
        return found

    def __setitem__(self, key: Key, value: RETURN_VAL_TYPE) -> None:
        self._of.update(*key, value)

    def __delitem__(self, key: Key) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Key]:
        return iter([key for key in self.put if self._of.lookup(*key) is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def copy(self) -> dict[Key, RETURN_VAL_TYPE]:
        return dict(self)


class EngineCache(CentroidKVAnswerCache):
    """An answer cache over a new engine, with the inside that the tests look at."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        super().__init__(engine=engine, **options)
        self._answers = Answers(self)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        super().update(prompt, llm_string, return_val)
        self._answers.put[prompt, llm_string] = None

    @property
    def _cache(self) -> Answers:
        return self._answers

    @_cache.setter
    def _cache(self, answers: Mapping[Key, RETURN_VAL_TYPE]) -> None:
        self.clear()
        for key, value in answers.items():
            self.update(*key, value)

    @property
    def _maxsize(self) -> int | None:
        return self.maxsize

    def __len__(self) -> int:
        return len(self._answers)


@pytest.fixture(scope="session")
def small_model() -> TransformersModel:
    torch.set_num_threads(1)
    return wrap_model(make_llama(), make_tokenizer())


@pytest.fixture(autouse=True)
def _engine_caches(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    small_model: TransformersModel,
    record_property: Any,
) -> Iterator[None]:
    opened: list[Engine] = []

    def make(**options: Any) -> EngineCache:
        store = tmp_path / f"store-{len(opened)}"
        opened.append(Engine.open(store, model=small_model, embedder=HashEmbedder()))
        return EngineCache(opened[-1], **options)

    monkeypatch.setattr(request.module, "InMemoryCache", make)
    yield
    record_property("engines", len(opened))
    for engine in opened:
        assert engine.check().is_clean
        engine.close()
