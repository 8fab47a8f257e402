"""Where a model's parts run and how its weights are quantised, as transformers takes it.

Quantised weights cannot be moved once they are loaded, so they are loaded to where they run.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from transformers import AutoConfig

from centroidkv.errors import ConfigError, MissingExtra

DeviceMap: TypeAlias = str | Mapping[str, Any] | None
Quantization: TypeAlias = Any

__all__ = ["DeviceMap", "Quantization", "placement"]


def placement(
    folder: str, device: str, device_map: DeviceMap, quantization: Quantization
) -> dict[str, Any]:
    """Return the options for `from_pretrained`; none of them for a plain model on one device.

    Args:
        folder: Where the model is, or its hub id; "" for a file, which holds no config.
        device: Where it all runs if there is no `device_map`.
        device_map: A word such as `auto`, or names of parts and where each runs.
        quantization: A quantisation config, or its fields.

    Raises:
        ConfigError: A file is to be quantised.
        MissingExtra: Some are needed, and accelerate is not installed.
    """
    chosen: dict[str, Any] = {}
    if quantization is not None:
        if not folder:
            raise ConfigError("quantization is for model folders and hub ids, not for a .gguf file")
        is_mapping = isinstance(quantization, Mapping)
        chosen["quantization_config"] = dict(quantization) if is_mapping else quantization
    if device_map is not None:
        chosen["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    elif quantization is not None or _is_quantized(folder):
        chosen["device_map"] = {"": device}
    if chosen:
        _require_accelerate()
    return chosen


def _is_quantized(folder: str) -> bool:
    """Tell whether a model was saved quantised; an adapter's folder has no config to tell it."""
    if not folder:
        return False
    try:
        config = AutoConfig.from_pretrained(folder)
    except (KeyError, OSError, ValueError):
        return False
    return getattr(config, "quantization_config", None) is not None


def _require_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingExtra("accelerate", command="pip install accelerate") from error
