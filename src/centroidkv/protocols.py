"""The ports: what each part promises. The contract of a method stands here, once.

Implementations carry a qualifier (`ChromaIndex` is a `CentroidIndex`). An off switch is an
implementation too: an index that never matches, a store that holds nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from centroidkv.config import Sampling
from centroidkv.placement import BlendReport, PlacedPassage
from centroidkv.tool_calls import Tool, ToolFormat
from centroidkv.types import Cluster, Drafts, FloatArray, KVBlock, Message, Passage, Prompt, Token

__all__ = [
    "BlendingSequence",
    "BlockLookup",
    "BlockStore",
    "CausalModel",
    "CentroidIndex",
    "Embedder",
    "Progress",
    "Retrieve",
    "RunningSequence",
    "ScoringSequence",
]

Retrieve: TypeAlias = Callable[[str], Sequence[Passage]]
Progress: TypeAlias = Callable[[str, int, int], None]


@runtime_checkable
class Embedder(Protocol):
    """Turns questions into unit vectors."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that shapes the vectors."""

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors, shape [len(texts), dim], float32."""


class CentroidIndex(Protocol):
    """Finds the nearest centroid among those of one plan, in the reduced space."""

    def nearest(self, vector: FloatArray, domain: str | None = None) -> int | None:
        """Return the id of the cluster nearest to `vector` (shape [reduced]), None if empty.

        With a `domain`, of the clusters that serve it: its own, and those it is a guest of.
        """

    def put(self, clusters: Sequence[Cluster], reduced: FloatArray) -> None:
        """Insert or replace clusters; `reduced` has shape [len(clusters), reduced]."""

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        """Note the last KV block of a cluster's prefix per (KV namespace, head)."""

    def faults(self, plan_vectors: FloatArray) -> list[str]:
        """Compare with the plan's reduced centroids, [clusters, reduced]; [] means sound."""

    def close(self) -> None:
        """Release files and connections."""


class BlockLookup(Protocol):
    """Knows which blocks there are, and which continues which."""

    def has(self, block_id: str) -> bool:
        """Tell whether a block is known, without reading it."""

    def neighbours(
        self, parent: str, token_ids: Sequence[int]
    ) -> list[tuple[str, tuple[int, ...]]]:
        """Return the children of `parent` just before and just after `token_ids` in token order.

        Among all children, one of these two shares the longest prefix with `token_ids`.
        """


class BlockStore(BlockLookup, Protocol):
    """Holds blocks by id: one tier."""

    def get(self, block_id: str) -> KVBlock | None:
        """Return a block, or None when it is unknown or unusable. Never raises for bad files."""

    def put(self, parent: str, token_ids: Sequence[int], block: KVBlock) -> str | None:
        """Store a block behind `parent`; return the id that holds its tokens now, if any."""


class RunningSequence(Protocol):
    """The KV of one running request: restored, prefilled, decoded, and read back."""

    @property
    def num_tokens(self) -> int:
        """How many tokens have KV."""

    def restore(self, blocks: Iterable[KVBlock]) -> None:
        """Append stored KV, token range after token range."""

    def prefill(self, token_ids: Sequence[int], drafts: Drafts | None = None) -> None:
        """Compute the KV of `token_ids` behind what is there; leaves logits for decoding.

        `drafts` may make decoding faster, never other: guessed tokens count only where the model
        chooses the same. They may be ignored.
        """

    def decode(self, sampling: Sampling) -> Iterator[Token]:
        """Yield tokens until end of sequence or `sampling.max_tokens`."""

    def snapshot(self, start: int, stop: int) -> KVBlock:
        """Copy the KV of the tokens [start, stop) out of the running sequence."""

    def close(self) -> None:
        """Give the memory back; the sequence cannot be used afterwards."""


@runtime_checkable
class ScoringSequence(RunningSequence, Protocol):
    """A running sequence that also tells what it thinks of tokens: for measuring, not answering."""

    def score(self, token_ids: Sequence[int]) -> FloatArray:
        """Run tokens behind what is there; return the logits after each, [tokens, vocabulary]."""


class BlendingSequence(ScoringSequence, Protocol):
    """A running sequence that can also place passages computed elsewhere."""

    def blend(
        self,
        token_ids: Sequence[int],
        passages: Iterable[PlacedPassage],
        *,
        share: float | None = 0.15,
        drafts: Drafts | None = None,
    ) -> BlendReport:
        """Compute the KV of `token_ids` behind what is there, but for placed passages.

        Passages lie behind the KV that the sequence has, in order, and do not overlap; each is
        written to its place before the next is asked for. Of their
        tokens the `share` that matters most to what follows them is computed; with None as many as
        it takes to come close. All other tokens are always computed, the last one at least. Leaves
        logits for decoding, as `prefill` does.
        """

    def truncate(self, num_tokens: int) -> None:
        """Forget the KV behind the first `num_tokens`."""


@runtime_checkable
class CausalModel(Protocol):
    """A language model that speaks of prefixes and token ranges.

    An engine that owns its KV may restore coarser pieces, or none: `restore` then ignores what
    it cannot use and `num_tokens` tells how far it got.
    """

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that shapes KV."""

    @property
    def context_tokens(self) -> int:
        """Most tokens a sequence may have, prompt and answer together."""

    @property
    def grid_tokens(self) -> int:
        """KV is kept and reused in whole multiples of so many tokens of a prompt.

        1 where any border will do. Above 1 the KV of decoded tokens is not kept.
        """

    @property
    def tool_format(self) -> ToolFormat | None:
        """How tool calls are written in an answer; None when tools cannot be rendered."""

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        chat_template: bool = True,
        tools: Sequence[Tool] = (),
        answer_start: str = "",
    ) -> Prompt:
        """Render and tokenize a prompt, once, with one BOS at most.

        `answer_start` is text that the answer begins with; it is part of the prompt.
        """

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text without template or special tokens."""

    def open_sequence(
        self, capacity: int, prompt: Sequence[int] = (), *, namespace: str = ""
    ) -> RunningSequence:
        """Start a sequence with room for `capacity` tokens.

        With the `prompt` that it will run and a KV namespace, it may hold the KV of leading
        tokens of that prompt already, left by an earlier sequence of the same namespace:
        `num_tokens` tells. Otherwise it is empty.
        """
