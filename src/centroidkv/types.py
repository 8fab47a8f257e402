"""Frozen values that cross the borders between the parts.

Owns the package's words. Knows no model, no store and no framework: stdlib and numpy only.
"""

import bisect
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from centroidkv.metadata import plain_metadata
from centroidkv.reasons import BlendProblem
from centroidkv.tool_calls import ToolCall

__all__ = [
    "Chunk",
    "Cluster",
    "Completion",
    "Drafts",
    "FloatArray",
    "KVBlock",
    "Message",
    "Outcome",
    "Passage",
    "Prompt",
    "Reason",
    "Record",
    "Reuse",
    "Route",
    "Token",
    "Usage",
    "common_prefix",
    "valid_text",
]

FloatArray: TypeAlias = NDArray[np.float32]

Outcome = Literal["hit", "partial", "miss", "bypass"]
Reuse = Literal["exact", "off", "blend", "representative"]
Reason = Literal[
    "pinned_prefix",  # the cluster's pinned context was reused
    "repeated_prefix",  # a prefix seen before was reused, without a cluster
    "extra_passages",  # the pins were reused, passages behind them were computed
    "prefix_differs",  # only a part of an earlier prompt was identical
    "head_only",  # nothing but the text before the first passage was identical
    "empty_store",  # the store holds no KV for this model and tenant
    "other_model",  # the store holds KV, but of another model, tenant or KV precision
    "cluster_not_filled",  # admitted, but the cluster had no KV yet
    "not_admitted",  # the question lies outside every cluster's radius
    "no_route",  # no retriever wrapper told which cluster the question belongs to
    "question_before_context",  # the prompt puts the question first, so no prefix can repeat
    "block_damaged",  # a stored block could not be used and is computed again
    "store_failed",  # the store could not be read
    "computed_faster",  # a part of what is stored was computed, as loading would have taken longer
    "reuse_off",  # the caller switched reuse off
    "representative_answer",  # the stored answer of the cluster's representative was served
    "representative_kv",  # decoded from the KV of the representative's prompt
    "representative_appended",  # the question was put behind the representative's KV
    "over_error_bound",  # the representative was too doubtful under the calibrated bound
    "representative_too_long",  # the question behind the representative's prompt did not fit
    "representative_filled",  # the cluster had no representative; this question is it now
    "blended",  # passages seen before were placed where they stand in this prompt
]


def valid_text(text: str) -> str:
    """Replace what is not valid Unicode (lone surrogates), which no tokenizer or file takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    An assistant's turn may hold tool calls; a tool's turn says which call it answers.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved text; its id is the SHA-256 of content and metadata, so a changed text is new."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, metadata: Mapping[str, Any] | None = None) -> "Passage":
        """Make a passage whose id is derived from its content; its metadata is plain JSON."""
        text, known = valid_text(text), plain_metadata(metadata or {})
        canonical = json.dumps([text, known], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(canonical.encode("utf-8", "replace")).hexdigest()
        return cls(digest, text, known)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt: its text, its token ids, and where each token starts in the text."""

    text: str
    token_ids: tuple[int, ...]
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    def tokens_before(self, char: int) -> int:
        """Count the tokens that start before position `char` of the text."""
        return bisect.bisect_left(self.offsets, char)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A group of past questions and the context that is pinned for it.

    `centroid` is the mean of the members' embeddings, shape [dim]; `radius` is the largest
    Euclidean distance to it, in that full space, at which a question is admitted. `guests` are
    other domains whose past questions lie nearest to it: it serves them too.
    """

    id: int
    centroid: FloatArray
    representative: str
    members: tuple[str, ...]
    pins: tuple[str, ...]
    radius: float
    num_members: int
    domain: str = ""
    guests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Where a question was sent: the nearest cluster, how far it is, and whether it admits.

    `domain` is that which was given; without one, the nearest cluster decides its domain too.
    `plan` is the id of the plan version that routed it.
    """

    question: str
    embedding: FloatArray
    cluster: Cluster | None
    distance: float
    is_admitted: bool
    embed_s: float = 0.0
    route_s: float = 0.0
    domain: str | None = None
    plan: str = ""

    @property
    def settled_domain(self) -> str | None:
        """The domain given, else that of the cluster that admits, None where there is none."""
        learnt = self.cluster.domain if self.cluster and self.is_admitted else None
        return self.domain or learnt or None


@dataclass(frozen=True, slots=True)
class Record:
    """What the retriever wrapper tells the model: question, route, passages, time.

    `num_pins` of the passages, the first ones, are pinned; `found` are the texts that the base
    retriever returned, best first. `cluster` is the one whose leading pins these are: not always
    the nearest one, which stands in `route`. The `question` is "" where it is not known which of
    several requests of the same passages this one is.
    """

    question: str
    route: Route
    passages: tuple[Passage, ...]
    num_pins: int
    found: tuple[str, ...]
    time_s: float
    cluster: Cluster | None = None


@dataclass(frozen=True, slots=True)
class KVBlock:
    """Keys and values of all layers for consecutive tokens of a sequence.

    `keys` has shape [layers, kv_heads, tokens, key_dim], `values` [layers, kv_heads, tokens,
    value_dim]. `dtype` is the model's name for the element type; bfloat16, which numpy lacks,
    is carried as its bit pattern in uint16.
    """

    keys: NDArray[Any]
    values: NDArray[Any]
    dtype: str

    @property
    def num_tokens(self) -> int:
        return int(self.keys.shape[2])

    @property
    def num_bytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)

    def part(self, start: int, stop: int) -> "KVBlock":
        """Return a view of the tokens [start, stop)."""
        return replace(self, keys=self.keys[:, :, start:stop], values=self.values[:, :, start:stop])


@dataclass(frozen=True, slots=True)
class Token:
    """One decoded token: id, the text it completes, and its logit's lead over the second best.

    `is_end` marks the model's own end of sequence, which is not part of the answer; `is_drafted`
    that it was guessed before it was decoded.
    """

    id: int
    text: str
    margin: float
    is_end: bool = False
    is_drafted: bool = False


@dataclass(frozen=True, slots=True)
class Drafts:
    """What an answer may be guessed from: token ids, verified by the model before they count.

    `repeat` is an earlier answer to the very same prompt, `answers` are earlier ones to prompts
    of the same cluster, newest last, and `prompt` is the prompt itself.
    """

    prompt: tuple[int, ...] = ()
    repeat: tuple[int, ...] = ()
    answers: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What happened to one request, and what it cost; times in seconds, counts in tokens.

    An `approximate` answer may be that to another question, `representative`; `error_bound` is
    the calibrated limit of how often it is wrong, None where that is unknown. `domain` is that of
    the cluster, or that which was given where no cluster admitted the question, and `plan` the
    plan version that routed it, None where none did. Of the answer, `drafted_tokens` were guessed
    right and cost no step of their own. `kv_precision` is `raw`, or the level that reused KV may
    have been kept at. With `reuse="blend"`, the KV of `blended_tokens` came from passages computed
    in other prompts, `recomputed_tokens` of these were computed again, and `blend_problem` says why
    it was not more. `loaded_bytes` came from disk or a remote, at the `loaded_levels`;
    `unloaded_tokens` are stored too, but were computed, since that was faster or they could not be
    loaded. Only what was loaded counts as reused.
    """

    outcome: Outcome
    reason: Reason
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    stored_tokens: int = 0
    pinned_passages: int = 0
    dropped_pins: int = 0
    drafted_tokens: int = 0
    cluster: int | None = None
    domain: str | None = None
    distance: float | None = None
    tier: Literal["memory", "disk", "remote", "none"] = "none"
    loaded_bytes: int = 0
    loaded_levels: tuple[str, ...] = ()
    unloaded_tokens: int = 0
    approximate: bool = False
    representative: str | None = None
    error_bound: float | None = None
    plan: str | None = None
    kv_precision: str = "raw"
    blended_tokens: int = 0
    recomputed_tokens: int = 0
    blend_problem: BlendProblem | None = None
    embed_s: float = 0.0
    route_s: float = 0.0
    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed, or not beyond the first layers."""
        return self.reused_tokens + self.blended_tokens - self.recomputed_tokens

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and `computed_tokens`, for JSON."""
        return {**asdict(self), "computed_tokens": self.computed_tokens}


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    `margins` holds each token's lead over the second best, to tell ties apart; where the model
    ended the answer itself, that decision's margin comes last, one more than there are tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    usage: Usage
    margins: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; the last one carries the whole completion."""

    text: str
    completion: Completion | None = None


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """Count the leading tokens that two sequences share."""
    limit = min(len(one), len(other))
    for i in range(limit):
        if one[i] != other[i]:
            return i
    return limit
