"""Why less was reused than might have been, in words that stand in a request's usage."""

from typing import Literal

__all__ = ["BlendProblem"]

# Why nothing, or less than all passages, was blended.
BlendProblem = Literal[
    "model_unsupported",  # the model does not blend: its positions, its attention, or `bitwise`
    "gate_failed",  # blended prompts of this model came out too far from computed ones
    "no_passages",  # neither a retriever wrapper nor the marker told where passages stand
    "question_before_context",  # the question stands before the passages, in what they share
    "marker_in_question",  # the question itself holds the marker
    "passages_overlap",  # a passage stands within another one, and is computed as part of it
    "passage_repeated",  # a passage stands there twice; the second one is computed
    "head_unseen",  # no earlier prompt began like this one, up to its passages
    "passages_unseen",  # a passage had not been prefilled behind this head yet
    "too_little",  # what could be placed is not worth it
    "block_damaged",  # a stored passage could not be used
    "store_failed",  # the store could not be read
    "blend_failed",  # blending broke off; the prompt was computed
]
