"""The forwards of one answer: one for each token, or one for a token and a draft to verify.

Knows what was run and which logits follow which token; not how a token is chosen.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from centroidkv.models.draft_model import ModelDrafter
from centroidkv.models.drafting import Drafter, Kind, Pace
from centroidkv.models.lending import SequenceKV
from centroidkv.types import Drafts

__all__ = ["Steps"]


class _Forward(Protocol):
    pace: Pace
    model: Any  # of transformers

    def forward(
        self, token_ids: Sequence[int], arena: SequenceKV, *, rows: int = 1
    ) -> torch.Tensor: ...


class Steps:
    """Walks through an answer behind a prefilled prompt.

    Between two calls the arena counts just the tokens that were taken; the KV of guesses that are
    not confirmed lies behind them and is written over. A `small` model guesses from the first step
    on, not behind the prompt, which would delay the first token.
    """

    def __init__(
        self,
        owner: _Forward,
        arena: SequenceKV,
        drafts: Drafts | None,
        *,
        limit: int,
        small: ModelDrafter | None = None,
    ) -> None:
        self._owner = owner
        self._arena = arena
        self._limit = limit  # most tokens that may ever have KV here
        self._rows = torch.empty(0)
        self._row = 0
        self._draft: Sequence[int] = ()  # row i of the logits follows its first i tokens
        self._guess: Sequence[int] = ()  # what the draft is the part of that was worth a forward
        self._kind: Kind = "match"
        num_ids = owner.model.get_input_embeddings().num_embeddings
        self._drafter = Drafter(drafts, num_ids=num_ids) if drafts is not None else None
        self._small = small

    @property
    def logits(self) -> torch.Tensor:
        """The logits of the next token, [vocabulary]."""
        return self._rows[self._row]

    def begin(self, token_ids: Sequence[int]) -> None:
        """Run the end of the prompt."""
        self._run(token_ids)

    def follow(self, logits: torch.Tensor) -> None:
        """Go on behind a prompt that was run elsewhere; its last logits, [1, vocabulary]."""
        self._rows, self._row = logits, 0

    def is_drafted(self, token: int) -> bool:
        """Tell whether a choice of the next token was guessed, and has KV already."""
        return self._row < len(self._draft) and self._draft[self._row] == token

    def take(self, token: int) -> None:
        """Go on behind a chosen token."""
        is_drafted = self.is_drafted(token)
        if self._drafter is not None:
            if self._row < len(self._guess):
                # Judged without cost, also where nothing was verified.
                right = self._guess[self._row] == token
                self._owner.pace.guessed(self._kind, is_right=right)
            self._drafter.push(token)
        if is_drafted:
            self._owner.pace.saved(self._kind)
            self._arena.resize(self._arena.num_tokens + 1)
            self._row += 1
        else:
            self._run([token])

    def _run(self, token_ids: Sequence[int]) -> None:
        """Run tokens, and a guess at what follows where that is worth it."""
        valid = self._arena.num_tokens + len(token_ids)
        self._draft = self._worth_verifying(len(token_ids), room=self._limit - valid)
        rows = 1 + len(self._draft)
        if self._draft:
            self._owner.pace.verified(self._kind, len(self._draft), behind=len(token_ids))
        self._rows = self._owner.forward([*token_ids, *self._draft], self._arena, rows=rows)
        self._row = 0
        self._arena.resize(valid)

    def _worth_verifying(self, behind: int, *, room: int) -> Sequence[int]:
        if self._drafter is None or room < 1:
            self._guess = ()
            return ()
        pace = self._owner.pace
        self._kind, self._guess = self._drafter.propose()
        most = min(room, len(self._guess))
        num = pace.length(self._kind, most, behind=behind)
        answer = self._drafter.answer
        if self._small is not None and answer and room > 1:
            over_s = pace.choice(self._kind, most, behind=behind)[1] if num else 0.0
            # A guess at the last token saves nothing: no forward follows it.
            guessed = self._small.propose(answer, room=room - 1, over_s=over_s)
            if guessed:
                self._kind, self._guess, num = "model", guessed, len(guessed)
        return self._guess[:num]

    def close(self) -> None:
        """Let the small model keep what it has read."""
        if self._small is not None and self._drafter is not None:
            self._small.close(len(self._drafter.answer))
