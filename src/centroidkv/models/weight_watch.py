"""Whether a model still computes what it did when it was opened: its weights, and its adapters.

KV of other weights, or with another adapter active, is other KV; whoever changes a model under an
open engine would be answered from it. Looking at each weight would take as long as reading it,
so this looks at what torch counts: writes to a tensor, tensors and modules put in another's place.
Writes by way of `.data` are not counted; a sample of some weights shows those that change most.
"""

import copy
import json
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from centroidkv.errors import ModelError

__all__ = ["WeightWatch", "adapter_state"]

# How many weights are looked into, and at how many numbers of each.
_SAMPLES = 32
_NUMBERS = 4
_SAMPLED = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
_PLAIN = (torch.nn.Parameter, torch.Tensor)


def adapter_state(model: PreTrainedModel) -> str:
    """Say which adapters of PEFT are active, merged, switched off and how scaled; "" for none."""
    layers = [(name, m) for name, m in model.named_modules() if _is_adapted(m)]
    said = [[name, type(layer).__name__, *_said(_state(layer))] for name, layer in layers]
    return json.dumps(said) if said else ""


def _is_adapted(module: torch.nn.Module) -> bool:
    return hasattr(module, "_disable_adapters")


def _state(layer: Any) -> list[Any]:
    """Return what an adapted layer holds itself, of any of PEFT's methods."""
    active, merged = getattr(layer, "_active_adapter", ()), getattr(layer, "merged_adapters", ())
    return [layer._disable_adapters, active, merged, getattr(layer, "scaling", None)]


def _said(state: list[Any]) -> list[Any]:
    """Put a state into one form; the name of an only adapter may stand for a list of it."""
    disabled, active, merged, scaling = state
    scales = sorted((k, str(v)) for k, v in scaling.items()) if isinstance(scaling, dict) else []
    return [bool(disabled), [active] if isinstance(active, str) else [*active], [*merged], scales]


class _Weight(NamedTuple):
    """A tensor as it was and where it stands; held weakly, so that replaced ones are freed."""

    place: Mapping[str, torch.Tensor | None]
    name: str
    tensor: "weakref.ref[torch.Tensor]"
    version: int | None
    dtype: torch.dtype


class WeightWatch:
    """Remembers a model as it is now. Weights that accelerate moves in and out are not watched."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._kind = type(model).__name__
        modules = list(model.modules())
        self._tree = [(m._modules, list(m._modules.values())) for m in modules if m._modules]
        self._adapted = [(m, copy.deepcopy(_state(m))) for m in modules if _is_adapted(m)]
        self._weights = [w for m in modules for w in _weights(m)]
        fit = [w for w in self._weights if _can_be_sampled(w.place[w.name])]
        self._samples = fit[:: max(1, -(-len(fit) // _SAMPLES))]
        self._numbers = self._sampled()

    def require_unchanged(self) -> None:
        """See that the model is as it was; takes a fraction of a millisecond.

        Raises:
            ModelError: It is not.
        """
        if change := self.change():
            raise ModelError(
                f"{self._kind} is not as it was opened: {change}; stored KV is not its own any "
                "more, so open an engine anew, with the model as it is now"
            )

    def change(self) -> str:
        """Say what is not as it was, "" if nothing is."""
        if any(list(now.values()) != before for now, before in self._tree):
            return "layers were added or replaced"
        for layer, before in self._adapted:
            now = _state(layer)
            if now != before and _said(now) != _said(before):
                return "adapters were changed, merged, scaled or switched off"
        if not self._are_in_place() or self._numbers != self._sampled():
            return "weights were changed"
        return ""

    def _are_in_place(self) -> bool:
        for place, name, tensor, version, dtype in self._weights:
            now = place.get(name)
            if now is None or now is not tensor() or now.dtype is not dtype:
                return False
            if version is not None and now._version != version:
                return False
        return True

    def _sampled(self) -> bytes:
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for weight in self._samples:
            tensor = weight.place[weight.name]
            assert tensor is not None
            flat = tensor.detach().reshape(-1)
            middle = len(flat) // 2
            by_device.setdefault(flat.device, []).append(flat[middle : middle + _NUMBERS])
        return b"".join(
            torch.cat(parts).double().cpu().numpy().tobytes() for parts in by_device.values()
        )


def _weights(module: torch.nn.Module) -> list[_Weight]:
    """Return a module's own parameters and the buffers that are saved with them."""
    places: list[Mapping[str, torch.Tensor | None]] = [module._parameters, module._buffers]
    found = [
        (place, name, tensor)
        for place in places
        for name, tensor in place.items()
        if tensor is not None and name not in module._non_persistent_buffers_set
    ]
    if any(tensor.is_meta for _, _, tensor in found):  # accelerate has them, until they are needed
        return []
    return [_Weight(p, n, weakref.ref(t), _version(t), t.dtype) for p, n, t in found]


def _version(tensor: torch.Tensor) -> int | None:
    """Return how often torch saw a tensor written to; of those of inference mode it does not."""
    return None if tensor.is_inference() else tensor._version


def _can_be_sampled(tensor: torch.Tensor | None) -> bool:
    if tensor is None or type(tensor) not in _PLAIN:
        return False
    return tensor.dtype in _SAMPLED and tensor.is_contiguous()
