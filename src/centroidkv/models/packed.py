"""One forward for several sequences: their tokens in one row, attention apart for each.

Everything in a transformer but attention works token by token, so the new tokens of several
sequences can stand behind each other in one row, without padding. Attention goes sequence by
sequence, except over a prefix that several read: there the queries of all of them are one matrix
(J. Juravsky et al., "Hydragen", arXiv:2402.05099). Parts are merged by their log-sum-exp, as
flash attention does it. Knows nothing of threads or of who wants what.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from centroidkv.models.arena import Arena
from centroidkv.models.lending import SequenceKV

__all__ = [
    "KEYWORD",
    "NotPackable",
    "Pack",
    "Segment",
    "attend_part",
    "attention_paid",
    "by_kv_head",
    "known_layer",
    "merge_part",
]

# The keyword by which the pack of a forward reaches the attention function.
KEYWORD = "centroidkv_pack"
# What attention functions are told, and what this one does not know how to do.
UNKNOWN = ("softcap", "position_bias", "sliding_window", "s_aux", "head_mask")


class NotPackable(Exception):
    """The model does more in attention than packed attention knows."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """New tokens of one sequence; the logits of the last `rows` of them are wanted."""

    token_ids: Sequence[int]
    kv: SequenceKV
    rows: int = 1

    @property
    def holder(self) -> Arena:
        """The arena that holds the sequence's first tokens."""
        return self.kv if isinstance(self.kv, Arena) else self.kv.lender

    @property
    def own(self) -> Arena:
        """The arena that the new tokens are written to."""
        return self.kv if isinstance(self.kv, Arena) else self.kv.tail


@dataclass(frozen=True, slots=True)
class _Tail:
    """The rows [start, stop) of a pack, which see their own arena from `begin` on."""

    own: Arena
    start: int
    stop: int
    begin: int
    mask: torch.Tensor | None  # [groups * rows, tokens], None where each row sees all


@dataclass(frozen=True, slots=True)
class _Span:
    """The rows [start, stop) of a pack, which all see the tokens [begin, end) of one arena."""

    holder: Arena
    start: int
    stop: int
    begin: int
    end: int


class Pack:
    """The new tokens of several sequences in one row, and a cache as transformers wants one.

    `token_ids` and `positions` have shape [1, tokens]; `rows` are the places whose logits are
    wanted, `order` the segments as they stand in the row. A forward with it as `past_key_values`
    and under `KEYWORD` writes the new KV into each sequence's own arena.
    """

    is_compileable = False

    def __init__(self, segments: Sequence[Segment], *, groups: int) -> None:
        shape, device = segments[0].kv.shape, segments[0].kv.shape.device
        self.order = sorted(segments, key=_place)
        self.num_attended = 0
        self._groups = groups
        self._tails: list[_Tail] = []
        self._spans: list[_Span] = []
        self._written: list[tuple[torch.Tensor, torch.Tensor]] = []
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for _, group in groupby(self.order, key=lambda s: id(s.holder)):
            members = list(group)
            starts = [len(tokens)]
            for segment in members:
                before, new = segment.kv.num_tokens, len(segment.token_ids)
                tokens += segment.token_ids
                positions += range(before, before + new)
                rows += range(len(tokens) - segment.rows, len(tokens))
                starts.append(len(tokens))
            self._plan(members, starts)
        self.token_ids = torch.tensor([tokens], device=device)
        self.positions = torch.tensor([positions], device=device)
        self.rows = torch.tensor(rows, device=device)
        # Four dimensions: transformers hands it on as it is, and builds none.
        self.mask = torch.zeros(1, 1, 1, 1, dtype=shape.dtype, device=device)

    def _plan(self, members: Sequence[Segment], starts: Sequence[int]) -> None:
        """Say what the rows of the segments of one holder see, sorted by `_place`."""
        lent = [s.kv.lent for s in members if not isinstance(s.kv, Arena)]
        begin = 0
        for end in sorted(set(lent)):
            # Whoever borrowed less than this stands behind these.
            num = len(members) - len(lent) + sum(n >= end for n in lent)
            self._spans.append(_Span(members[0].holder, starts[0], starts[num], begin, end))
            begin = end
        for segment, start, stop in zip(members, starts, starts[1:], strict=False):
            is_holder = isinstance(segment.kv, Arena)
            first = begin if is_holder else 0
            held = segment.own.num_tokens + len(segment.token_ids) - first
            mask = _mask(stop - start, held, self._groups, segment.kv.shape)
            self._tails.append(_Tail(segment.own, start, stop, first, mask))

    def split(self, logits: torch.Tensor) -> Iterator[tuple[Segment, torch.Tensor]]:
        """Give each segment its logits; `logits` has shape [rows of all, vocabulary]."""
        at = 0
        for segment in self.order:
            yield segment, logits[at : at + segment.rows]
            at += segment.rows

    # what transformers asks of a cache

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write each sequence's new keys and values, [1, kv_heads, tokens, dim], to its arena."""
        self._written = [
            tail.own.cache.update(
                key_states[:, :, tail.start : tail.stop],
                value_states[:, :, tail.start : tail.stop],
                layer_idx,
            )
            for tail in self._tails
        ]
        return key_states, value_states

    def get_seq_length(self, *_: Any) -> int:
        return 0

    # what the attention function does with it

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """Attend for all rows; query [1, heads, tokens, dim], result [1, tokens, heads, dim].

        Raises:
            NotPackable: The layer does something that is not known here.
        """
        layer = known_layer(module, options)
        if not self._written:
            raise NotPackable("a layer without KV of its own")
        scale = options.get("scaling")
        written, self._written = self._written, []
        self.num_attended += 1
        rows = by_kv_head(query, query.shape[1] // self._groups)
        outputs, sums = [], []
        for tail, (all_keys, all_values) in zip(self._tails, written, strict=True):
            keys, values = all_keys[:, :, tail.begin :], all_values[:, :, tail.begin :]
            part, lse = attend_part(rows[tail.start : tail.stop], keys, values, tail.mask, scale)
            outputs.append(part)
            sums.append(lse)
        output, total = torch.cat(outputs), torch.cat(sums)
        for span in self._spans:
            keys = span.holder.keys[layer][:, :, span.begin : span.end]
            values = span.holder.values[layer][:, :, span.begin : span.end]
            part, lse = attend_part(rows[span.start : span.stop], keys, values, None, scale)
            merge_part(output[span.start : span.stop], total[span.start : span.stop], part, lse)
        return output.reshape(1, query.shape[2], query.shape[1], -1), None


def _place(segment: Segment) -> tuple[int, float]:
    """Sort by holder, the holder's own sequence first, then by how much is lent."""
    kv = segment.kv
    return id(segment.holder), float("-inf") if isinstance(kv, Arena) else -kv.lent


def _mask(new: int, held: int, groups: int, shape: Any) -> torch.Tensor | None:
    """Return what the last `new` of `held` tokens see: all before them and themselves."""
    if new == 1:
        return None
    mask = torch.full((new, held), float("-inf"), dtype=shape.dtype, device=shape.device)
    return mask.triu_(held - new + 1).repeat_interleave(groups, 0)


def known_layer(module: torch.nn.Module, options: Mapping[str, Any]) -> int:
    """Return the number of a layer that attends as is known here.

    Raises:
        NotPackable: It does something that is not, or has no number.
    """
    unknown = [n for n in UNKNOWN if options.get(n) is not None]
    layer: int | None = getattr(module, "layer_idx", None)
    if unknown or layer is None:
        raise NotPackable(", ".join(unknown) or "a layer without a number")
    return layer


def by_kv_head(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Return queries, [1, heads, rows, dim], as [rows, kv_heads, groups, dim]."""
    _, heads, num, dim = query.shape
    return query[0].transpose(0, 1).reshape(num, kv_heads, heads // kv_heads, dim)


def attend_part(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to one part of the tokens; all rows of a KV head are one matrix.

    Args:
        query: [rows, kv_heads, groups, dim].
        keys: [1, kv_heads, tokens, dim].
        values: [1, kv_heads, tokens, value_dim].
        mask: [rows * groups, tokens], added to the scores.
        scale: Of the scores; None for one over the root of dim.

    Returns:
        Output, [rows, kv_heads, groups, value_dim], and the logarithm of the sum that it was
        divided by, [rows, kv_heads, groups], float32.
    """
    num, kv_heads, groups, dim = query.shape
    stacked = query.transpose(0, 1).reshape(1, kv_heads, num * groups, dim)
    if query.device.type == "cpu" and dim == values.shape[-1]:
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            stacked, keys, values, attn_mask=mask, scale=scale
        )
    else:
        scores = (stacked @ keys.mT).float() * (scale if scale is not None else dim**-0.5)
        scores = scores if mask is None else scores + mask
        lse = scores.logsumexp(-1)
        output = (scores - lse[..., None]).exp().to(values.dtype) @ values
    output = output.reshape(kv_heads, num, groups, -1).transpose(0, 1)
    return output, lse.reshape(kv_heads, num, groups).transpose(0, 1)


def attention_paid(
    query: torch.Tensor, total: torch.Tensor, keys: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Return the attention that tokens get, summed over rows and heads, float32 [tokens].

    Args:
        query: Of rows behind all these tokens, [rows, kv_heads, groups, dim].
        total: Logarithms of the sums over all that the rows see, [rows, kv_heads, groups].
        keys: Of the tokens, [1, kv_heads, tokens, dim].
        scale: See `attend_part`.
    """
    num, kv_heads, groups, dim = query.shape
    paid = torch.zeros(keys.shape[2], device=keys.device)
    for head in range(kv_heads):  # one at a time: scores are of all rows and tokens
        # Scores in float32, as the totals are: of two roundings, one may be far above the other.
        asking = query[:, head].reshape(num * groups, dim).float()
        asking = asking * (scale if scale is not None else dim**-0.5)
        scores = torch.addmm(-total[:, head].reshape(-1, 1), asking, keys[0, head].float().mT)
        paid += scores.clamp_(max=0).exp_().sum(0)
    return paid


def merge_part(
    output: torch.Tensor, total: torch.Tensor, part: torch.Tensor, lse: torch.Tensor
) -> None:
    """Take another part of the tokens into `output` and `total`, in place."""
    both = torch.logaddexp(total, lse)
    before, behind = (total - both).exp()[..., None], (lse - both).exp()[..., None]
    if output.dtype == both.dtype:
        output.mul_(before).addcmul_(part, behind)
    else:  # rounded once
        output.copy_(output * before + part * behind)
    total.copy_(both)
