"""The usual Sentence-BERT pipeline without its wrapping: tokens, encoder, mean, unit length.

`SentenceTransformer.encode` serves every kind of model and input, and each single question pays for
that. Where a model is nothing but an encoder of text, the mean over its tokens and perhaps a
normalisation, the same numbers are had by calling those parts; a single text of a BERT goes a
shorter way still (`bert.py`). Knows no store and no plan.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from centroidkv.types import FloatArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from centroidkv.routing.bert import QuestionEncoder

__all__ = ["SentencePipeline"]

BATCH = 64


class SentencePipeline:
    """Embeds texts as `encode(normalize_embeddings=True)` does; see `of` for which models."""

    def __init__(self, tokenizer: Any, encoder: Any, *, device: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._device = device
        self._max_tokens = max_tokens
        encoder.eval()
        self._alone = _alone(encoder, tokenizer, max_tokens)

    @classmethod
    def of(cls, model: "SentenceTransformer") -> "SentencePipeline | None":
        """Return the pipeline of a model; None when it has other parts, prompts or settings."""
        parts = list(model)
        names = [type(p).__name__ for p in parts]
        if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]):
            return None
        encoder, tokenizer = (
            getattr(parts[0], "auto_model", None),
            getattr(model, "tokenizer", None),
        )
        mode = getattr(parts[1], "pooling_mode", None)
        is_plain = (
            (mode == "mean" or mode == ("mean",) or mode == ["mean"])
            and getattr(parts[0], "do_lower_case", False) is False
            and not getattr(parts[0], "processing_kwargs", None)
            and "message" not in getattr(parts[0], "modality_config", {})
            and getattr(model, "truncate_dim", None) is None
            and not getattr(model, "default_prompt_name", None)
            and getattr(tokenizer, "is_fast", False)
            and getattr(getattr(encoder, "config", None), "model_type", "") in _ENCODERS
        )
        limit = getattr(model, "max_seq_length", None)
        if not is_plain or not isinstance(limit, int):
            return None
        return cls(tokenizer, encoder, device=model.device, max_tokens=limit)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors, [len(texts), dim]; texts of like length are run together."""
        if len(texts) == 1 and self._alone is not None:
            return self._alone.embed(texts[0])[None]
        import torch

        found = np.empty((len(texts), self._encoder.config.hidden_size), np.float32)
        with torch.inference_mode():
            for rows in _batches(texts):
                inputs = self._tokenizer(
                    [texts[r] for r in rows],
                    padding=True,
                    truncation=True,
                    max_length=self._max_tokens,
                    return_tensors="pt",
                ).to(self._device)
                found[rows] = self._run(inputs).cpu().numpy()
        return found

    def _run(self, inputs: Any) -> Any:
        import torch

        mask = inputs["attention_mask"]
        if bool(mask.all()):
            # One question, or several of one length: attention without a mask is cheaper.
            hidden = self._encoder(**{**inputs, "attention_mask": None}).last_hidden_state
            mean = hidden.float().mean(1)
        else:
            hidden = self._encoder(**inputs).last_hidden_state.float()
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


# Encoders that attend both ways and whose rows in a batch do not depend on each other.
_ENCODERS = {"bert", "distilbert", "mpnet", "roberta", "xlm-roberta", "electra"}


def _alone(encoder: Any, tokenizer: Any, max_tokens: int) -> "QuestionEncoder | None":
    from centroidkv.routing.bert import QuestionEncoder

    return QuestionEncoder.of(encoder, tokenizer, max_tokens=max_tokens)


def _batches(texts: Sequence[str]) -> Iterator[list[int]]:
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]
