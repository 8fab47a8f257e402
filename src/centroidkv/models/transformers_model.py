"""A local transformers model behind the `CausalModel` port; `packing.py` runs it."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from centroidkv.config import Sampling
from centroidkv.errors import ContextTooLong
from centroidkv.models.arena import NOBODY, ArenaPool, Resident, kv_shape
from centroidkv.models.batching import Batcher, Job
from centroidkv.models.blend import Blender
from centroidkv.models.blend_choice import SHARE, Recipe
from centroidkv.models.blend_trial import problem_of
from centroidkv.models.cut_check import require_cuttable
from centroidkv.models.draft_model import DraftModel, ModelDrafter
from centroidkv.models.drafting import Pace
from centroidkv.models.lending import SequenceKV, SharedArenas
from centroidkv.models.packing import Packing
from centroidkv.models.positions import rotary_of
from centroidkv.models.rendering import TEMPLATE_DATE, ChatRenderer
from centroidkv.models.sampling import make_chooser, top_margin
from centroidkv.models.steps import Steps
from centroidkv.models.tokens import end_ids, require_fast
from centroidkv.models.weight_watch import WeightWatch
from centroidkv.placement import BlendReport, PlacedPassage
from centroidkv.rotary import Rotary
from centroidkv.tool_calls import Tool, ToolFormat
from centroidkv.types import Drafts, FloatArray, KVBlock, Message, Prompt, Token, valid_text

__all__ = ["TransformersModel"]


class TransformersModel:
    """Any causal LM of transformers whose layers all keep plain KV.

    Args:
        model: A loaded model; it is put into evaluation mode.
        tokenizer: Its fast tokenizer.
        fingerprint: SHA-256 over weights, config, tokenizer, template and dtype.
        arena_budget_bytes: Memory that may be kept for arenas not in use.
        today: What chat templates that print the date print; None for the real date.
        max_batch: How many sequences one forward may run. With 1, sequences of several threads
            take turns, and none borrows the KV of another.
    """

    grid_tokens = 1

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        fingerprint: str,
        arena_budget_bytes: int = 256 << 20,
        today: date | None = TEMPLATE_DATE,
        max_batch: int = 16,
    ) -> None:
        require_fast(tokenizer)
        model.train(mode=False)
        self.model = model
        self.tokenizer = tokenizer
        self.shape = kv_shape(model)
        require_cuttable(model, self.shape)
        self._renderer = ChatRenderer(tokenizer, today=today)
        self._fingerprint = fingerprint
        self.pace = Pace()
        self.draft_model: DraftModel | None = None  # see `draft_loading.attach_draft_model`
        self.packing = Packing(model, self.shape, self._timed, most=max_batch)
        self.arenas = SharedArenas(ArenaPool(self.shape, budget_bytes=arena_budget_bytes))
        self.batcher = Batcher(self.packing.run_jobs, lambda: self.packing.most)
        self._end_ids = end_ids(model, tokenizer)
        self.weight_watch = WeightWatch(model)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def context_tokens(self) -> int:
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        return int(limit) if limit else int(self.tokenizer.model_max_length)

    @cached_property
    def rotary(self) -> Rotary | None:
        """How keys depend on their position, None where that is not understood."""
        return rotary_of(self.model, self.shape)

    def blend_problem(self) -> str | None:
        """Say why sequences of this model cannot `blend`, None if they can; tried once."""
        return self._blend_trial

    @cached_property
    def _blend_trial(self) -> str | None:
        return problem_of(self.model, self.shape, self.rotary)

    @cached_property
    def blender(self) -> Blender:
        """What runs blended prefills. Asked for where there is no `blend_problem`."""
        assert self.rotary is not None, "keys cannot be turned"
        return Blender(self.model, self.rotary)

    # text and tokens

    @property
    def tool_format(self) -> ToolFormat | None:
        return self._renderer.tool_format

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        chat_template: bool = True,
        tools: Sequence[Tool] = (),
        answer_start: str = "",
    ) -> Prompt:
        """Render and tokenize; plain text becomes one user message unless `chat_template` is off.

        The template is rendered to text once and tokenized without special tokens, so a BOS
        that the template writes stays the only one.

        Raises:
            ModelError: Messages or tools were given, but the tokenizer has no chat template for
                them, or the template refuses them.
        """
        if isinstance(prompt, str):
            if not tools and (not chat_template or not self.tokenizer.chat_template):
                return self._tokenize(prompt + answer_start, add_special_tokens=True)
            prompt = [Message("user", prompt)]
        text = self._renderer.render(prompt, tools)
        return self._tokenize(text + answer_start, add_special_tokens=False)

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> Prompt:
        text = valid_text(text)
        encoded = self.tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
        )
        offsets = tuple(int(start) for start, _ in encoded["offset_mapping"])
        return Prompt(text, tuple(encoded["input_ids"]), offsets)

    def count_tokens(self, text: str) -> int:
        encoded = self.tokenizer(valid_text(text), add_special_tokens=False, verbose=False)
        return len(encoded["input_ids"])

    # sequences

    def open_sequence(
        self, capacity: int, prompt: Sequence[int] = (), *, namespace: str = "", apart: bool = False
    ) -> "_ArenaSequence":
        """Start a sequence; one of the same namespace that began alike may have left its KV.

        One that is `apart` shares no forward with others, and neither lends KV nor borrows it.

        Raises:
            ContextTooLong: The model has fewer positions than `capacity`.
            ModelError: Its weights or active adapters are not those it was opened with.
        """
        self.weight_watch.require_unchanged()
        if capacity > self.context_tokens:
            raise ContextTooLong(prompt_tokens=capacity, context_tokens=self.context_tokens)
        return _ArenaSequence(self, capacity, Resident.of(namespace, prompt), apart=apart)

    def num_held(self, prompt: Sequence[int], *, namespace: str) -> int:
        """Count the leading tokens of a prompt that a sequence opened for it would hold."""
        return self.arenas.num_idle(Resident.of(namespace, prompt))

    def open_kv(self, capacity: int, wanted: Resident, *, apart: bool) -> SequenceKV:
        """Return memory for a sequence's KV, with what others hold of it."""
        kv = self.arenas.open(
            capacity,
            wanted,
            may_borrow=lambda: self.packing.is_possible and not apart,
            may_lend=not apart,
        )
        self.batcher.join(kv)
        return kv

    def close_kv(self, kv: SequenceKV, resident: Resident) -> None:
        """Take a sequence's memory back, with what it holds now."""
        self.batcher.leave(kv)
        self.arenas.close(kv, resident)

    def forward(
        self, token_ids: Sequence[int], arena: SequenceKV, *, rows: int = 1
    ) -> torch.Tensor:
        """Run tokens behind a sequence's KV; return the logits of the last, [rows, vocabulary].

        Sequences of other threads that wait at the same time are run in the same forward.
        """
        return self.batcher.submit(Job(token_ids, arena, rows, self.arenas.is_apart(arena)))

    def _timed(self, num_tokens: int, seconds: float) -> None:
        self.pace.timed(num_tokens, seconds)

    def is_end(self, token_id: int) -> bool:
        """Tell whether a token ends an answer."""
        return token_id in self._end_ids


class _ArenaSequence:
    """One running sequence in an arena. See `RunningSequence` for the contract."""

    def __init__(
        self, owner: TransformersModel, capacity: int, wanted: Resident, *, apart: bool
    ) -> None:
        self._owner = owner
        self._arenas = owner.arenas
        self._capacity = capacity
        self._wanted = wanted
        self._answer: list[int] = []
        self._watched_tokens = -1
        self._exact_tokens = capacity  # behind these, KV is what a blend made of it
        self._arena: SequenceKV | None = owner.open_kv(capacity, wanted, apart=apart)
        self._steps: Steps | None = None

    @property
    def _open(self) -> SequenceKV:
        assert self._arena is not None, "the sequence is closed"
        return self._arena

    @property
    def num_tokens(self) -> int:
        return self._open.num_tokens

    @property
    def logits(self) -> torch.Tensor:
        """The logits of the next token, [vocabulary]."""
        assert self._steps is not None, "prefill comes before logits"
        return self._steps.logits

    def restore(self, blocks: Iterable[KVBlock]) -> None:
        self._arenas.working(self._open)
        for block in blocks:
            self._open.append(block)
        self._arenas.ready(self._open)

    def prefill(self, token_ids: Sequence[int], drafts: Drafts | None = None) -> None:
        self._arenas.working(self._open)
        while len(token_ids) > (most := self._owner.batcher.prefill_tokens):
            self._owner.forward(token_ids[:most], self._open)
            token_ids = token_ids[most:]
            self._arenas.ready(self._open)
        self._steps = self._new_steps(drafts)
        self._steps.begin(token_ids)
        self._arenas.ready(self._open, is_working=False)

    def score(self, token_ids: Sequence[int]) -> FloatArray:
        logits = self._owner.forward(token_ids, self._open, rows=len(token_ids))
        return logits.float().cpu().numpy()

    def blend(
        self,
        token_ids: Sequence[int],
        passages: Iterable[PlacedPassage],
        *,
        share: float | None = SHARE,
        drafts: Drafts | None = None,
    ) -> BlendReport:
        """Do as `prefill`, but take the KV of `passages` and compute only a part of them again.

        Args:
            token_ids: The prompt's tokens behind what is there; those of no passage are computed.
            passages: Ascending, at absolute positions among `token_ids`. KV behind what is there
                now is no longer taken for exact.
            share: Of the passages' tokens, how many are computed again; None to let a bound say.
            drafts: See `prefill`.

        Raises:
            ValueError: The passages do not fit the tokens or each other.
        """
        self._exact_tokens = min(self._exact_tokens, self.num_tokens)
        # Before anybody could borrow what is not the KV of the tokens alone.
        self._arenas.lend_only(self._open, self._exact_tokens)
        self._arenas.working(self._open)
        done = self._owner.blender.run(self._open, token_ids, passages, Recipe.of(share))
        self._steps = self._new_steps(drafts)
        self._steps.follow(done.logits)
        self._arenas.ready(self._open, is_working=False)
        return done.report

    def _new_steps(self, drafts: Drafts | None) -> Steps:
        small = self._small_model(drafts) if drafts is not None else None
        return Steps(self._owner, self._open, drafts, limit=self._capacity, small=small)

    def _small_model(self, drafts: Drafts) -> ModelDrafter | None:
        draft = self._owner.draft_model
        if draft is None:
            return None
        where = self._wanted.namespace
        return draft.begin(
            self._owner.pace, drafts.prompt, namespace=where, capacity=self._capacity
        )

    def decode(self, sampling: Sampling) -> Iterator[Token]:
        steps = self._steps
        assert steps is not None, "prefill comes before decode"
        tokenizer: Any = self._owner.tokenizer
        choose = make_chooser(sampling, steps.logits.device)
        detokenize = DecodeStream(skip_special_tokens=True)
        for left in range(sampling.max_tokens - 1, -1, -1):
            logits = steps.logits
            token, margin = choose(logits), top_margin(logits)
            is_drafted = steps.is_drafted(token)
            is_end = self._owner.is_end(token)
            if is_end or not left:
                self._owner.batcher.leave(self._open)
            if is_end:
                yield Token(token, "", margin, is_end=True, is_drafted=is_drafted)
                return
            text = detokenize.step(tokenizer.backend_tokenizer, token)
            yield Token(token, text or "", margin, is_drafted=is_drafted)
            if self._arena is None:
                return
            if left:
                self._answer.append(token)
                steps.take(token)

    def snapshot(self, start: int, stop: int) -> KVBlock:
        assert stop <= self._exact_tokens, "blended KV is not to be kept as that of its tokens"
        if self._watched_tokens != self.num_tokens:  # it computed since
            self._owner.weight_watch.require_unchanged()
            self._watched_tokens = self.num_tokens
        return self._open.snapshot(start, stop)

    def truncate(self, num_tokens: int) -> None:
        """Forget the KV behind the first `num_tokens`."""
        self._open.resize(num_tokens)

    def close(self) -> None:
        if self._arena is not None:
            if self._steps is not None:
                self._steps.close()
            self._owner.close_kv(self._arena, self._resident(self._arena.num_tokens))
            self._arena = None

    def _resident(self, num_tokens: int) -> Resident:
        """Name what the arena holds now: as much of prompt and answer as has KV."""
        if not self._wanted.namespace or self._owner.weight_watch.change():
            return NOBODY
        held = np.concatenate([self._wanted.token_ids, np.asarray(self._answer, np.int64)])
        return Resident(self._wanted.namespace, held[: min(num_tokens, self._exact_tokens)])
