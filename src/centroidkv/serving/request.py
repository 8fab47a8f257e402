"""One request and its state on the way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from centroidkv.config import Sampling, SamplingOptions
from centroidkv.errors import ConfigError, GenerationTimeout
from centroidkv.kv.blocks import Match
from centroidkv.protocols import RunningSequence
from centroidkv.serving.outcome import Layout
from centroidkv.serving.queueing import Place, RequestQueue
from centroidkv.tool_calls import Tool
from centroidkv.types import Drafts, Message, Prompt, Reason, Record, Reuse, Usage

_OWN = ("question", "reuse", "chat_template", "tools", "answer_start")

__all__ = [
    "Filling",
    "Request",
    "RequestOptions",
    "Run",
    "require_served",
    "user_text_of",
    "without",
]


class RequestOptions(SamplingOptions, total=False):
    """What may be said of a request besides its prompt.

    `question` is the question in it, if the caller knows; `reuse` a policy, None for the
    engine's own; `chat_template` whether plain text is wrapped by the model's chat template;
    `tools` schemas of functions the model may call; `answer_start` a text the answer must begin
    with, which counts as part of the prompt.
    """

    question: str | None
    reuse: Reuse | None
    chat_template: bool
    tools: Sequence[Tool]
    answer_start: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the model. `told` hears what an answer that broke off had cost."""

    prompt: str | Sequence[Message]
    sampling: Sampling
    question: str | None = None
    reuse: Reuse = "exact"
    chat_template: bool = True
    tools: Sequence[Tool] = ()
    answer_start: str = ""
    told: Callable[[Usage], None] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls, prompt: str | Sequence[Message], options: RequestOptions, *, reuse: Reuse
    ) -> "Request":
        """Make a request from keyword arguments; `reuse` is for those that name no policy.

        Raises:
            ConfigError: One is unknown or out of range.
        """
        given: dict[str, Any] = dict(options)
        own = {name: given.pop(name) for name in _OWN if name in given}
        own["reuse"] = own.get("reuse") or reuse
        return cls(prompt, Sampling.of(given), **own)

    def tell(self, usage: Usage) -> None:
        """Let whoever looks on hear what an answer that broke off had cost."""
        if self.told is not None:
            self.told(usage)

    def __post_init__(self) -> None:
        require_served(self.reuse)
        if self.question is not None and not isinstance(self.question, str):
            raise ConfigError(f"question must be a text, not {self.question!r}")
        if not self.prompt:
            raise ConfigError("the prompt is empty; give a text or at least one message")


def require_served(reuse: str) -> None:
    """Refuse a reuse policy that is not served.

    Raises:
        ConfigError: There is no such policy.
    """
    if reuse not in ("exact", "off", "representative", "blend"):
        raise ConfigError(
            f"reuse must be 'exact', 'blend', 'representative' or 'off', not {reuse!r}"
        )


class Filling(Protocol):
    """Another way to give a prompt its KV than to compute what is not there."""

    def fill(self, run: "Run", sequence: RunningSequence, drafts: Drafts | None) -> None:
        """Do as `RunningSequence.prefill` with the tokens behind what was reused."""

    def told(self, run: "Run", usage: Usage) -> Usage:
        """Say in the usage what came of it."""


@dataclass(slots=True)
class Run:
    """The state of one request on its way. One that does not learn leaves nothing behind.

    Of the prompt, the KV of the first `exact_tokens` is that of its tokens alone; None for all.
    """

    request: Request
    begin: float
    prompt: Prompt
    record: Record | None
    question: str
    where: Layout
    dropped_pins: int = 0
    match: Match = field(default_factory=lambda: Match(()))
    reused: int = 0
    recomputed: int = 0  # tokens of the stored prefix that were computed all the same
    sound: int = 0  # leading tokens whose KV the store need not be given again
    loaded_bytes: int = 0
    levels: set[str] = field(default_factory=set)
    tier: Literal["memory", "disk", "remote", "none"] = "none"
    kv_precision: str = "raw"
    problem: Reason | None = None
    miss_reason: Reason | None = None
    learns: bool = True
    filling: Filling | None = None
    exact_tokens: int | None = None
    handed_on: int = 0  # leading tokens whose KV is on its way into the store already
    token_bytes: int = 0  # of that KV
    storable_tokens: int | None = None  # what stands behind these is personal; None for all
    load_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0

    @property
    def held(self) -> int:
        """The leading tokens that the sequence held when its prefix was restored."""
        return self.reused + self.recomputed

    def place_in(self, queue: RequestQueue) -> Place:
        """Wait for a place among the requests that are computed, as long as there is time.

        Raises:
            QueueFull: As many wait already as may.
            GenerationTimeout: The time was up first.
        """
        limit = self.request.sampling.timeout_s
        place = queue.enter(timeout_s=None if limit is None else max(0.0, self._left(limit)))
        if place is None:
            raise GenerationTimeout(timeout_s=limit or 0.0, num_tokens=0)
        return place

    @property
    def is_conversation(self) -> bool:
        """Whether the next prompt may continue this one."""
        return not isinstance(self.request.prompt, str)

    @property
    def seconds(self) -> float:
        """How long the request is under way."""
        return time.perf_counter() - self.begin

    @property
    def left_s(self) -> float | None:
        """How long it may still take; None for as long as it takes."""
        limit = self.request.sampling.timeout_s
        return None if limit is None else self._left(limit)

    def _left(self, limit: float) -> float:
        return limit - self.seconds

    def check_time(self, num_tokens: int) -> None:
        """Raise `GenerationTimeout` when the request's time is up."""
        limit = self.request.sampling.timeout_s
        if limit is not None and self._left(limit) < 0:
            raise GenerationTimeout(timeout_s=limit, num_tokens=num_tokens)


def user_text_of(prompt: str | Sequence[Message]) -> str:
    """Return the text a user's passages and question stand in."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(m.content for m in prompt)


def without(prompt: str | Sequence[Message], text: str) -> str | Sequence[Message]:
    """Return the prompt without the first occurrence of a text, in every message."""
    if isinstance(prompt, str):
        return prompt.replace(text, "", 1)
    return [replace(m, content=m.content.replace(text, "", 1)) for m in prompt]
