"""The arena: preallocated memory that a running sequence's KV is written into, in place.

The only file that knows transformers' cache classes. A cache that concatenates moves every
byte at every step; here a step writes its own token and nothing else moves.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from centroidkv.errors import UnsupportedModel
from centroidkv.models.layer_memory import (
    KVShape,
    LayerMemory,
    LayerShape,
    read_bits,
    write_bits,
)
from centroidkv.types import KVBlock

__all__ = ["NOBODY", "Arena", "ArenaPool", "KVShape", "Resident", "input_device", "kv_shape"]

# Capacities are rounded up to this, so that an arena serves later requests of similar length.
GRAIN_TOKENS = 256
# Rotary positions that are rescaled by the length of the whole sequence: the KV of a prefix is
# then another one in a longer prompt.
LENGTH_DEPENDENT = {"dynamic", "longrope"}
# Layers whose state up to a token can be had from a longer one: KV, token by token, or nothing.
_CUTTABLE = {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
_ADVICE = "use a model with full or sliding-window attention in every layer"


def kv_shape(model: PreTrainedModel) -> KVShape:
    """Run one token and read the shape of its KV.

    Raises:
        UnsupportedModel: Some layer keeps a state that cannot be cut at a token.
    """
    name = type(model).__name__
    cache = DynamicCache(config=model.config)
    token = torch.zeros((1, 1), dtype=torch.long, device=input_device(model))
    try:
        with torch.inference_mode():
            model(input_ids=token, past_key_values=cache, use_cache=True)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"{name} does not run with transformers' common cache, so there is no reuse for it; "
            f"{_ADVICE}"
        ) from error
    found: list[Any] = list(cache.layers)
    odd = {type(x).__name__ for x in found if type(x) not in _CUTTABLE}
    odd |= {f"{kind} positions" for kind in _rope_kinds(model) & LENGTH_DEPENDENT}
    layers = [] if odd else [_layer_shape(layer) for layer in found]
    if odd or not any(layers):
        kinds = ", ".join(sorted(odd)) or "no KV layers"
        raise UnsupportedModel(
            f"{name} uses {kinds}: its state cannot be cut into token prefixes, so there is no "
            f"exact reuse for it; {_ADVICE}"
        )
    dtypes = {layer.keys.dtype for layer in found if layer.keys is not None}
    if len(dtypes) != 1:
        raise UnsupportedModel(f"{name} keeps KV of several dtypes, which is not supported")
    return KVShape.of(layers, dtypes.pop())


def _layer_shape(layer: Any) -> LayerShape | None:
    if layer.keys is None or not layer.keys.numel():
        return None
    keys, values = layer.keys, layer.values
    window = getattr(layer, "sliding_window", None)
    return LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.device, window)


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where token ids belong: where the model begins, or the CPU if that is on disk."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def _rope_kinds(model: PreTrainedModel) -> set[str]:
    """Return the kinds of rotary positions that a model's config names, per layer type or not."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    several = [p for p in parameters.values() if isinstance(p, dict)]
    return {str(p.get("rope_type")) for p in [parameters, *several]}


class _ArenaLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's view of the arena."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.num_tokens = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.num_tokens + key_states.shape[-2]
        self.keys[:, :, self.num_tokens : end] = key_states
        self.values[:, :, self.num_tokens : end] = value_states
        self.num_tokens = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.num_tokens

    def crop(self, tokens_to_remove: int) -> None:
        self.num_tokens -= abs(tokens_to_remove)


class _WindowLayer(_ArenaLayer):  # type: ignore[no-untyped-call]
    """A layer of which a token sees the last tokens alone.

    What has left the window stays, so that the sequence can be cut at any token; attention gets
    the same keys and values as from transformers' own layer, which drops them.
    """

    is_sliding = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, window: int) -> None:
        super().__init__(keys, values)
        self.window = window

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first = self._first_seen
        keys, values = super().update(key_states, value_states)
        return keys[:, :, first:], values[:, :, first:]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length - self._first_seen, self._first_seen

    @property
    def _first_seen(self) -> int:
        """The first token that the next one sees."""
        return max(self.num_tokens - self.window + 1, 0)


def _as_layer(shape: LayerShape | None, keys: torch.Tensor, values: torch.Tensor) -> _ArenaLayer:
    if shape is not None and shape.window is not None:
        return _WindowLayer(keys, values, shape.window)
    return _ArenaLayer(keys, values)


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """Whose KV an arena holds: the token ids, [tokens], within one namespace; "" for nobody's."""

    namespace: str
    token_ids: NDArray[np.int64]

    @classmethod
    def of(cls, namespace: str, token_ids: Sequence[int]) -> "Resident":
        """Name a sequence; one of no tokens is nobody's."""
        return cls(namespace, np.asarray(token_ids, np.int64)) if len(token_ids) else NOBODY


NOBODY = Resident("", np.empty(0, np.int64))


class Arena:
    """KV memory for one sequence of at most `capacity` tokens.

    `keys` has shape [layers, 1, kv_heads, capacity, key_dim], `values` accordingly. Both are empty
    where layers of several shapes or devices have memory of their own.
    """

    def __init__(self, shape: KVShape, capacity: int) -> None:
        self.shape = shape
        self.capacity = capacity
        self.resident = NOBODY
        self.lent_tokens = 0  # leading tokens that running sequences read: they must stay
        apart = not shape.is_stacked
        size = (0 if apart else shape.num_layers, 1, shape.kv_heads, capacity)
        self.keys = torch.empty(*size, shape.key_dim, dtype=shape.dtype, device=shape.device)
        self.values = torch.empty(*size, shape.value_dim, dtype=shape.dtype, device=shape.device)
        self._apart = LayerMemory(shape.with_kv, capacity, shape.dtype) if apart else None
        holder: Any = self._apart or self
        kinds: Sequence[LayerShape | None] = shape.with_kv or [None] * shape.num_layers
        self._layers = [
            _as_layer(*each) for each in zip(kinds, holder.keys, holder.values, strict=True)
        ]
        self.cache = Cache(layers=_with_gaps(shape, self._layers))

    @property
    def num_bytes(self) -> int:
        return self.capacity * self.shape.bytes_per_token

    @property
    def num_tokens(self) -> int:
        # A forward that broke off has reached the first layers only.
        return self._layers[-1].num_tokens

    def resize(self, num_tokens: int) -> None:
        """Declare the first `num_tokens` valid and the rest free."""
        for layer in self._layers:
            layer.num_tokens = num_tokens

    def append(self, block: KVBlock) -> None:
        """Copy a block's KV behind what is there."""
        start = self.num_tokens
        self.write(start, block)
        self.resize(start + block.num_tokens)

    def write(self, start: int, block: KVBlock) -> None:
        """Copy a block's KV to the tokens from `start` on; how many there are stays as it is."""
        stop = start + block.num_tokens
        if self._apart is not None:
            self._apart.write(start, block.keys, block.values)
        else:
            write_bits(self.keys[:, 0, :, start:stop], block.keys)
            write_bits(self.values[:, 0, :, start:stop], block.values)

    def snapshot(self, start: int, stop: int) -> KVBlock:
        """Copy the KV of the tokens [start, stop) out."""
        if self._apart is not None:
            keys, values = self._apart.read(start, stop)
        else:
            keys = read_bits(self.keys[:, 0, :, start:stop])
            values = read_bits(self.values[:, 0, :, start:stop])
        return KVBlock(keys, values, str(self.shape.dtype).removeprefix("torch."))


def _with_gaps(shape: KVShape, layers: Sequence[_ArenaLayer]) -> list[Any]:
    """Return a cache's layers, with placeholders for those of a model that keep no KV."""
    remaining = iter(layers)
    if not shape.layers:
        return list(remaining)
    gap: Any = DummyLayer
    return [gap() if layer is None else next(remaining) for layer in shape.layers]


class ArenaPool:
    """Keeps arenas that are not in use: memory for the next request, and KV for one like the last.

    An arena holds the KV of the sequence that ran in it, its resident. A request of the same
    namespace that begins alike takes it over as it is, and no KV is moved.
    """

    def __init__(self, shape: KVShape, *, budget_bytes: int) -> None:
        self.shape = shape
        self.budget_bytes = budget_bytes
        self._free: list[Arena] = []  # the one given back last stands last
        # Arenas are also given back by the garbage collector, within `take` as well.
        self._lock = threading.RLock()

    def take(self, capacity: int, wanted: Resident = NOBODY) -> Arena:
        """Return an arena with room for `capacity` tokens, holding the KV of what `wanted` shares.

        `num_tokens` tells how many leading tokens of `wanted` that are: 0 in most cases, and all
        but one at the most.
        """
        with self._lock:
            best, shared = self._best(capacity, wanted)
            if best is not None:
                return self._taken(best, shared)
            unread = [a for a in self._free if a.capacity >= capacity and not a.lent_tokens]
            vacant = [a for a in unread if not a.resident.namespace]
            if vacant or (unread and not self._has_room(capacity)):
                # The smallest, and of these the one unused for longest.
                return self._taken(min(vacant or unread, key=lambda a: a.capacity), 0)
        return Arena(self.shape, _rounded(capacity))

    def shared(self, capacity: int, wanted: Resident) -> int:
        """Count the leading tokens of `wanted` that `take` would find."""
        with self._lock:
            return self._best(capacity, wanted)[1]

    def _best(self, capacity: int, wanted: Resident) -> tuple[Arena | None, int]:
        """Return the arena that holds most of `wanted`, and how many tokens of it."""
        fitting = [a for a in self._free if a.capacity >= capacity]
        shares = [(a, _worth_keeping(a.resident, wanted)) for a in fitting]
        shares = [(a, n) for a, n in shares if n and n >= a.lent_tokens]
        return max(shares, key=lambda x: x[1], default=(None, 0))

    def _taken(self, arena: Arena, num_tokens: int) -> Arena:
        if arena in self._free:
            self._free.remove(arena)
        arena.resize(num_tokens)
        arena.resident = NOBODY
        return arena

    def _has_room(self, capacity: int) -> bool:
        held = sum(a.num_bytes for a in self._free)
        return held + _rounded(capacity) * self.shape.bytes_per_token <= self.budget_bytes

    def give(self, arena: Arena, resident: Resident = NOBODY) -> None:
        """Take an arena back with what it holds; the oldest go when the budget is reached."""
        arena.resident = resident
        with self._lock:
            self._free.append(arena)
            while self._free and sum(a.num_bytes for a in self._free) > self.budget_bytes:
                self._free.pop(0)

    def held(self, namespace: str) -> list[Resident]:
        """Return what idle arenas hold of a namespace."""
        with self._lock:
            return [a.resident for a in self._free if a.resident.namespace == namespace]

    def forget(self, namespace: str) -> int:
        """Give back the memory of a namespace's idle arenas; return how many these were.

        One that running sequences read only loses its name: its memory goes with them.
        """
        with self._lock:
            own = [a for a in self._free if a.resident.namespace == namespace]
            for arena in own:
                arena.resident = NOBODY
            self._free = [a for a in self._free if a not in own]
            return len(own)


def _rounded(capacity: int) -> int:
    return -(-capacity // GRAIN_TOKENS) * GRAIN_TOKENS


def _worth_keeping(resident: Resident, wanted: Resident) -> int:
    """Count the leading tokens of `wanted` that an arena has, 0 where taking it is a waste.

    What shares only a head would lose its resident the rest, which is worth more to others.
    """
    if not wanted.namespace or resident.namespace != wanted.namespace:
        return 0
    most = min(len(resident.token_ids), len(wanted.token_ids) - 1)
    differ = np.flatnonzero(resident.token_ids[:most] != wanted.token_ids[:most])
    shared = int(differ[0]) if len(differ) else max(most, 0)
    return shared if 2 * shared >= len(resident.token_ids) else 0
