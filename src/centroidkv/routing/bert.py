"""A BERT encoder for one short text, without what makes it general: embeds a question fast.

The same numbers as transformers' `BertModel` gives (J. Devlin et al., arXiv:1810.04805), by a tenth
of the calls: query, key and value in one product, weights packed once for oneDNN, tokens straight
from the tokenizer. Owns copies of the weights; knows nothing of batches, masks or devices. What it
does not cover, or does not reproduce on a probe, is left to the model itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from centroidkv.types import FloatArray

PROBE = "Is this the same vector, to the last digits that matter?"
TOLERANCE = 1e-5
# The products are packed for about so many tokens, as questions have; others work as well.
PACKED_TOKENS = 16

__all__ = ["QuestionEncoder"]


class _Linear:
    """A linear layer, packed where torch has oneDNN, with an optional GELU behind it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight, self._bias = weight.contiguous(), bias.contiguous()
        self._packed: torch.Tensor | None = None
        ops: Any = torch.ops.mkldnn
        has_onednn: Any = torch.backends.mkldnn.is_available
        if has_onednn() and hasattr(ops, "_linear_pointwise"):
            # What torch's own compiler lowers a linear layer with constant weights to.
            self._packed = ops._reorder_linear_weight(self._weight, PACKED_TOKENS)

    def __call__(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        if self._packed is None:
            y = functional.linear(x, self._weight, self._bias)
            return functional.gelu(y) if gelu else y
        ops: Any = torch.ops.mkldnn
        behind: tuple[Any, ...] = ("gelu", [], "none") if gelu else ("none", [], "")
        result: torch.Tensor = ops._linear_pointwise(x, self._packed, self._bias, *behind)
        return result


class _Norm:
    def __init__(self, norm: Any) -> None:
        self._weight, self._bias, self._eps = norm.weight.detach(), norm.bias.detach(), norm.eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], self._weight, self._bias, self._eps)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention: _Linear  # query, key and value
    output: _Linear
    attention_norm: _Norm
    up: _Linear
    down: _Linear
    norm: _Norm

    @classmethod
    def of(cls, layer: Any) -> "_Layer":
        own = layer.attention.self
        three = (own.query, own.key, own.value)
        return cls(
            _Linear(
                torch.cat([p.weight.detach() for p in three]),
                torch.cat([p.bias.detach() for p in three]),
            ),
            _linear(layer.attention.output.dense),
            _Norm(layer.attention.output.LayerNorm),
            _linear(layer.intermediate.dense),
            _linear(layer.output.dense),
            _Norm(layer.output.LayerNorm),
        )

    def __call__(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        tokens, width = x.shape
        three = self.attention(x).view(tokens, 3, heads, width // heads).permute(1, 2, 0, 3)
        query, key, value = three.unsqueeze(1)  # each [1, heads, tokens, head]
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = self.attention_norm(x + self.output(seen[0].transpose(0, 1).reshape(tokens, width)))
        return self.norm(x + self.down(self.up(x, gelu=True)))


class QuestionEncoder:
    """Embeds one text as the mean over its tokens, of unit length. See `of` for which models."""

    def __init__(self, encoder: Any, tokenizer: Any, *, max_tokens: int) -> None:
        # Its own tokenizer: that of the model is set anew for padding and length by each caller.
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        table = encoder.embeddings
        self._words = table.word_embeddings.weight.detach()
        kinds = table.token_type_embeddings.weight.detach()
        self._places = table.position_embeddings.weight.detach() + kinds[0]
        self._norm = _Norm(table.LayerNorm)
        self._heads = int(encoder.config.num_attention_heads)
        self._layers = [_Layer.of(layer) for layer in encoder.encoder.layer]

    @classmethod
    def of(cls, encoder: Any, tokenizer: Any, *, max_tokens: int) -> "QuestionEncoder | None":
        """Return the encoder of a BERT in float32 on the CPU, None for another.

        It is held against the model itself on one text, and given up where they differ.
        """
        config, weights = encoder.config, list(encoder.parameters())
        is_plain = (
            config.model_type == "bert"
            and config.hidden_act == "gelu"
            and not config.is_decoder
            and getattr(config, "position_embedding_type", "absolute") == "absolute"
            and max_tokens <= config.max_position_embeddings
            and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        )
        if not is_plain:
            return None
        try:
            with torch.inference_mode():
                made = cls(encoder, tokenizer, max_tokens=max_tokens)
                ids = made.token_ids(PROBE)
                expected = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
                expected = functional.normalize(expected, dim=0).numpy()
                is_same = bool(np.allclose(made.embed(PROBE), expected, atol=TOLERANCE))
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return None  # another build of torch, or layers that were changed
        return made if is_same else None

    def token_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def embed(self, text: str) -> FloatArray:
        """Return a unit vector, [dim]; NaN where a text has no token at all."""
        ids = torch.tensor(self.token_ids(text), dtype=torch.long)
        if not len(ids):
            return np.full(self._words.shape[1], np.nan, np.float32)
        with torch.inference_mode():
            x = self._norm(self._words[ids] + self._places[: len(ids)])
            for layer in self._layers:
                x = layer(x, self._heads)
            vector: FloatArray = functional.normalize(x.mean(0), dim=0).numpy()
        return vector


def _linear(layer: Any) -> _Linear:
    return _Linear(layer.weight.detach(), layer.bias.detach())
