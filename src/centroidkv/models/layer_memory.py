"""What KV looks like in a model, and memory for layers that one tensor cannot hold.

Those are layers of several shapes, or on several devices. Owns how a layer's part stands in a
block, and how bits get from a block into a tensor and back. Knows no cache class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from centroidkv.block_form import BlockForm

__all__ = ["KVShape", "LayerMemory", "LayerShape", "read_bits", "write_bits"]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The KV of one layer; a `window` is how many tokens a token sees, itself among them."""

    kv_heads: int
    key_dim: int
    value_dim: int
    device: torch.device
    window: int | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What layers that share a tensor have in common."""
        return self.kv_heads, self.key_dim, self.value_dim


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token's KV looks like in a block of a model.

    `layers` is empty for a plain model: each layer keeps KV of this shape on this device and
    attends to all of it. Else it has an entry for every layer, None for one that keeps no KV;
    where layers differ in shape, a block has one layer and one head of all numbers.
    """

    num_layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    layers: tuple[LayerShape | None, ...] = ()

    @classmethod
    def of(cls, layers: Sequence[LayerShape | None], dtype: torch.dtype) -> "KVShape":
        """Describe a model by its layers, of which at least one keeps KV."""
        kept = [layer for layer in layers if layer is not None]
        first = kept[0]
        is_plain = set(layers) == {first} and first.window is None
        if len({layer.sizes for layer in kept}) == 1:
            sizes = (len(kept), *first.sizes)
        else:
            keys = sum(layer.kv_heads * layer.key_dim for layer in kept)
            sizes = (1, 1, keys, sum(layer.kv_heads * layer.value_dim for layer in kept))
        return cls(*sizes, dtype, first.device, () if is_plain else tuple(layers))

    @property
    def with_kv(self) -> list[LayerShape]:
        """The layers that keep KV, of a model that is not plain."""
        return [layer for layer in self.layers if layer is not None]

    @property
    def is_stacked(self) -> bool:
        """Whether one tensor holds the KV of all layers."""
        return len({(layer.sizes, layer.device) for layer in self.with_kv}) <= 1

    @property
    def block_form(self) -> BlockForm:
        """What blocks of the model look like."""
        sizes = self.num_layers, self.kv_heads, self.key_dim, self.value_dim
        return BlockForm(*sizes, str(self.dtype).removeprefix("torch."))

    @property
    def bytes_per_token(self) -> int:
        numbers = self.num_layers * self.kv_heads * (self.key_dim + self.value_dim)
        return numbers * self.dtype.itemsize


class LayerMemory:
    """A tensor of its own for each layer's keys, [1, kv_heads, capacity, key_dim], and values.

    Blocks of layers of one shape are [layers, kv_heads, tokens, dim], as everywhere. Where shapes
    differ, a token's numbers stand behind one another, layer by layer and head by head:
    [1, 1, tokens, sum of kv_heads * dim].
    """

    def __init__(self, layers: Sequence[LayerShape], capacity: int, dtype: torch.dtype) -> None:
        def empty(layer: LayerShape, dim: int) -> torch.Tensor:
            size = (1, layer.kv_heads, capacity, dim)
            return torch.empty(*size, dtype=dtype, device=layer.device)

        self.keys = [empty(layer, layer.key_dim) for layer in layers]
        self.values = [empty(layer, layer.value_dim) for layer in layers]
        self._is_even = len({layer.sizes for layer in layers}) == 1

    def write(self, start: int, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Copy the arrays of a block to the tokens from `start` on."""
        stop = start + keys.shape[2]
        for tensors, array in ((self.keys, keys), (self.values, values)):
            for tensor, part in zip(tensors, self._parts(tensors, array), strict=True):
                write_bits(tensor[0, :, start:stop], part)

    def read(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Copy the tokens [start, stop) out, as the arrays of a block."""
        return self._joined(self.keys, start, stop), self._joined(self.values, start, stop)

    def _parts(
        self, tensors: Sequence[torch.Tensor], array: NDArray[Any]
    ) -> Iterator[NDArray[Any]]:
        """Yield the layers of an array, [kv_heads, tokens, dim]."""
        if self._is_even:
            yield from array
            return
        rows, begin = array[0, 0], 0
        for tensor in tensors:
            heads, dim = tensor.shape[1], tensor.shape[3]
            part = rows[:, begin : begin + heads * dim]
            yield part.reshape(len(rows), heads, dim).transpose(1, 0, 2)
            begin += heads * dim

    def _joined(self, tensors: Sequence[torch.Tensor], start: int, stop: int) -> NDArray[Any]:
        read = [read_bits(tensor[0, :, start:stop]) for tensor in tensors]
        if self._is_even:
            return np.stack(read)
        rows = [part.transpose(1, 0, 2).reshape(stop - start, -1) for part in read]
        return np.ascontiguousarray(np.concatenate(rows, axis=1)[None, None])


def write_bits(target: torch.Tensor, source: NDArray[Any]) -> None:
    """Copy an array into a tensor of the same shape, on whatever device."""
    if target.device.type == "cpu":
        # numpy's strided copy runs at memory speed, several times faster than torch's here.
        np.copyto(_bits(target).numpy(), source)
    else:
        target.copy_(torch.from_numpy(np.array(source)).view(target.dtype))


def read_bits(source: torch.Tensor) -> NDArray[Any]:
    """Copy a tensor out, bfloat16 as its bit pattern in uint16."""
    copied: NDArray[Any] = _bits(source).cpu().numpy().copy()
    return copied


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """View bfloat16, which numpy lacks, as its bit pattern."""
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
