"""Linear layers in int8 for CPUs: weights scaled by output channel, activations by token.

Each token has a scale of its own and products are summed as whole numbers, so what a layer makes
of a token does not depend on what is computed with it. Attention between the layers is float, and
where its last bits differ, rounding to int8 makes the difference large: equal with reuse on and
off are such models in bitwise mode alone. Method: T. Dettmers et al., "LLM.int8()" (2022),
section 3 (vector-wise quantisation), without its decomposition by outliers.
"""

import torch
from transformers import PreTrainedModel

from centroidkv.errors import UnsupportedModel

__all__ = ["INT8", "Int8Linear", "is_int8", "use_int8"]

# What the fingerprint says; another rounding or scale is another number.
INT8 = "int8 by channel and token, 1"
_MOST = 127
# Narrower layers choose experts or weigh heads: little work, and much depends on them. (torch's
# product of int8 matrices is wrong for a single column, too: none comes to that.)
_FEWEST = 64


class Int8Linear(torch.nn.Module):
    """Stands for a linear layer; its weights are int8, [out, in], what goes in and out is not."""

    packed: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)
        self.register_buffer("packed", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0].contiguous())
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the layer to states, [..., in]; return [..., out] in the same dtype."""
        rows = states.reshape(-1, self.in_features).float()
        scale = _scale(rows)
        whole = torch._int_mm((rows / scale).round_().to(torch.int8), self.packed.t())
        output = torch.mul(whole, scale).mul_(self.scale).to(states.dtype)
        if self.bias is not None:
            output += self.bias
        return output.view(*states.shape[:-1], self.out_features)


def _scale(rows: torch.Tensor) -> torch.Tensor:
    """Return what one step of int8 is worth in each row, [rows, 1]."""
    most: torch.Tensor = torch.linalg.vector_norm(rows, float("inf"), 1, keepdim=True)
    return most.clamp_(min=1e-30).div_(_MOST)


def use_int8(model: PreTrainedModel) -> None:
    """Replace a model's linear layers, in place.

    Raises:
        UnsupportedModel: It does not run on a CPU, or has no linear layers to replace.
    """
    name = type(model).__name__
    if {p.device.type for p in model.parameters()} != {"cpu"}:
        raise UnsupportedModel(
            f"{name} does not run on the CPU, which quantization='int8' is for; give one of "
            "transformers' quantisation configs instead"
        )
    wide = [
        (path, layer)
        for path, layer in model.named_modules()
        if type(layer) is torch.nn.Linear and min(layer.in_features, layer.out_features) >= _FEWEST
    ]
    if not _is_exact():
        raise UnsupportedModel(
            "this CPU cannot sum products of int8 exactly; use quantization=None"
        )
    if not wide:
        raise UnsupportedModel(f"{name} has no linear layers that quantization='int8' could take")
    for path, layer in wide:
        model.set_submodule(path, Int8Linear(layer))


def _is_exact() -> bool:
    """Tell whether large products are summed exactly; some kernels for old CPUs clip them."""
    largest = torch.full((2, 64), _MOST, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t()) == 64 * _MOST**2).all())


def is_int8(model: PreTrainedModel) -> bool:
    """Tell whether a model's linear layers were replaced."""
    return any(isinstance(layer, Int8Linear) for layer in model.modules())
