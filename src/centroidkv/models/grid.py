"""Bitwise mode: every prompt is computed in the same pieces, with its prefix reused or not.

Floating-point sums depend on their order, and kernels choose it by the shapes they are called
with. Here prompts run in a fixed grid of chunks, [0, 256), [256, 512) and so on, the last one as
long as it is; only KV of whole chunks is kept; and answers run one token a forward. So each
forward that is run at all has the same inputs and shapes with reuse on and off, and the logits
are equal to the bit, whatever the element type. Knows neither cache classes nor what is stored.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import transformers

from centroidkv.config import Sampling
from centroidkv.errors import ConfigError
from centroidkv.fingerprint import fingerprint
from centroidkv.models.layer_memory import KVShape
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.protocols import CausalModel, RunningSequence
from centroidkv.tool_calls import Tool, ToolFormat
from centroidkv.types import Drafts, KVBlock, Message, Prompt, Token

# A multiple of the store's blocks of 64 tokens.
GRID_TOKENS = 256

__all__ = ["GRID_TOKENS", "GridModel", "GridSequence"]


class GridModel:
    """A transformers model that computes on the grid. See `CausalModel` for the contract.

    The fingerprint says what else shapes the bits: grid, kernel, versions, processor, and the
    number of threads, which stays what it was when this was made.

    Raises:
        ConfigError: The model is none of transformers, so how it computes is its own affair.
    """

    grid_tokens = GRID_TOKENS

    def __init__(self, model: CausalModel) -> None:
        if not isinstance(model, TransformersModel):
            raise ConfigError(
                f"bitwise=True cannot be promised for {type(model).__name__}; "
                "give a transformers model"
            )
        self.model = model
        self.num_threads = torch.get_num_threads()
        self._fingerprint = fingerprint(
            model.fingerprint, f"threads {self.num_threads}", *_arithmetic(model)
        )

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def shape(self) -> KVShape:
        return self.model.shape

    @property
    def context_tokens(self) -> int:
        return self.model.context_tokens

    @property
    def tool_format(self) -> ToolFormat | None:
        return self.model.tool_format

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        chat_template: bool = True,
        tools: Sequence[Tool] = (),
        answer_start: str = "",
    ) -> Prompt:
        return self.model.encode(
            prompt, chat_template=chat_template, tools=tools, answer_start=answer_start
        )

    def count_tokens(self, text: str) -> int:
        return self.model.count_tokens(text)

    def open_sequence(
        self, capacity: int, prompt: Sequence[int] = (), *, namespace: str = ""
    ) -> "GridSequence":
        sequence = self.model.open_sequence(capacity, prompt, namespace=namespace, apart=True)
        return GridSequence(sequence, num_threads=self.num_threads)


class _Sequence(RunningSequence, Protocol):
    @property
    def logits(self) -> torch.Tensor: ...

    def truncate(self, num_tokens: int) -> None: ...


class GridSequence:
    """A running sequence whose prompt is computed on the grid. See `RunningSequence`.

    What it leaves for the next request are whole chunks of its prompt, never decoded tokens.
    """

    def __init__(self, sequence: _Sequence, *, num_threads: int) -> None:
        self._sequence = sequence
        self._num_threads = num_threads
        self._whole = 0  # tokens in whole chunks of the prompt that have KV in all layers
        self._is_open = True
        self._cut()

    @property
    def num_tokens(self) -> int:
        return self._sequence.num_tokens

    @property
    def logits(self) -> torch.Tensor:
        """The logits of the next token, [vocabulary]."""
        return self._sequence.logits

    def restore(self, blocks: Iterable[KVBlock]) -> None:
        """Append stored KV as far as it fills chunks; the rest will be computed."""
        waiting: list[KVBlock] = []
        for block in blocks:
            waiting.append(block)
            if sum(b.num_tokens for b in waiting) % GRID_TOKENS == 0:
                self._sequence.restore(waiting)
                waiting = []
        self._cut()

    def prefill(self, token_ids: Sequence[int], drafts: Drafts | None = None) -> None:  # noqa: ARG002
        """Compute a prompt's rest chunk by chunk; drafts are ignored, as they change shapes."""
        assert self.num_tokens == self._whole, "a prompt is computed once, from a border on"
        for start in range(0, len(token_ids), GRID_TOKENS):
            with _threads(self._num_threads):
                self._sequence.prefill(token_ids[start : start + GRID_TOKENS])
            self._whole = self.num_tokens - self.num_tokens % GRID_TOKENS

    def decode(self, sampling: Sampling) -> Iterator[Token]:
        steps = self._sequence.decode(sampling)
        while True:
            with _threads(self._num_threads):
                token = next(steps, None)
            if token is None:
                return
            yield token

    def snapshot(self, start: int, stop: int) -> KVBlock:
        return self._sequence.snapshot(start, stop)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._sequence.truncate(self._whole)
            self._sequence.close()

    def _cut(self) -> None:
        """Forget what was taken over behind the last whole chunk."""
        self._whole = self.num_tokens - self.num_tokens % GRID_TOKENS
        self._sequence.truncate(self._whole)


def _arithmetic(model: TransformersModel) -> list[str]:
    """Name what shapes the bits of a result besides the model's files and the threads."""
    device = model.model.device
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        # Older versions of torch do not tell.
        known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        of_one_core = sorted((k, v) for k, v in known.items() if not k.startswith("num_"))
        processor = f"{torch.backends.cpu.get_cpu_capability()} {of_one_core}"
    return [
        f"grid {GRID_TOKENS}",
        f"kernel {model.model.config._attn_implementation}",
        f"torch {torch.__version__} {torch.get_float32_matmul_precision()}",
        f"transformers {transformers.__version__}",
        f"{device.type} {processor}",
    ]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads, whatever has been set meanwhile or in this thread."""
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)
