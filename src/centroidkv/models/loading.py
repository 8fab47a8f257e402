"""From what a user names to a model: bundled name, folder, GGUF file, hub id, loaded objects.

Fingerprints come from the files, never from a name: two folders with the same weights share
their KV, and a model that was trained on does not meet the KV of what it was before.
"""

import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.hub import cached_file

from centroidkv.errors import ConfigError, ModelNotFound
from centroidkv.files import user_cache_folder
from centroidkv.fingerprint import fingerprint, folder_digest
from centroidkv.models.attention import use_shared_kv_heads
from centroidkv.models.bundled import PREFIX, bundled_folder
from centroidkv.models.int8 import use_int8
from centroidkv.models.placing import DeviceMap, Quantization, placement
from centroidkv.models.rendering import TEMPLATE_DATE
from centroidkv.models.tokens import require_fast
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.models.weight_watch import adapter_state
from centroidkv.models.weights import quantization_of, weights_digest

_SHAPING = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt"}
# What is left out is named, not what counts: one file too many costs KV, one too few an answer.
_PAPERS = ("license", "licence", "readme", "notice", "use_policy")
_OF_TRAINING = {"training_args.bin", "optimizer.bin", "scheduler.bin", "trainer_state.json",
                "all_results.json", "eval_results.json", "train_results.json",
                "requirements.txt"}  # fmt: skip

__all__ = ["load_model", "locate", "wrap_model"]


def load_model(
    source: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    arena_budget_bytes: int = 256 << 20,
    today: date | None = TEMPLATE_DATE,
    max_batch: int = 16,
) -> TransformersModel:
    """Load a model by name or path.

    Args:
        source: `bundled:NAME`, a Hugging Face folder, a `.gguf` file, or a hub id.
        device: Where it runs; CUDA when there is one, else the CPU.
        dtype: A torch dtype's name; float32 on the CPU, else what the model was saved in.
        device_map: Instead of `device`: which part runs where, as transformers takes it.
        quantization: `int8` for linear layers in int8 on the CPU, one of transformers'
            quantisation configs, or its fields as a dict.
        arena_budget_bytes: Memory that may be kept for arenas not in use.
        today: What chat templates that print the date print; None for the real date.
        max_batch: How many sequences one forward may run.

    Raises:
        ModelNotFound: There is no such model, or it cannot be loaded in this way.
        UnsupportedModel: Its state cannot be cut into prefixes.
    """
    folder, options = locate(str(source))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind: Any = named_dtype(dtype) if dtype else (torch.float32 if device == "cpu" else "auto")
    of_transformers = None if quantization == "int8" else quantization
    places = placement("" if options else folder, device, device_map, of_transformers)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, **places, **options)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(f"cannot load a model from {str(source)!r}: {first}") from error
    if "device_map" not in places:
        model.to(torch.device(device))  # type: ignore[arg-type]
    use_shared_kv_heads(model)
    if quantization == "int8":
        use_int8(model)
    if (Path(folder) / "adapter_config.json").exists() or adapter_state(model):
        # The adapter's files do not hold the weights it adapts.
        return wrap_model(
            model,
            tokenizer,
            arena_budget_bytes=arena_budget_bytes,
            today=today,
            max_batch=max_batch,
        )
    digest = fingerprint(_files_digest(folder, options), *_runtime(model))
    return TransformersModel(
        model,
        tokenizer,
        fingerprint=digest,
        arena_budget_bytes=arena_budget_bytes,
        today=today,
        max_batch=max_batch,
    )


def wrap_model(
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    arena_budget_bytes: int = 256 << 20,
    today: date | None = TEMPLATE_DATE,
    max_batch: int = 16,
) -> TransformersModel:
    """Use a model and tokenizer that are loaded already; nothing about them is changed.

    Raises:
        ConfigError: The tokenizer is missing.
        UnsupportedModel: The tokenizer is a slow one, or the model's KV cannot be cut.
    """
    if tokenizer is None:
        raise ConfigError("a loaded model needs its tokenizer too: tokenizer=...")
    require_fast(tokenizer)
    config = model.config.to_dict()
    # How it is quantised is added as every model has it.
    for volatile in ("_name_or_path", "transformers_version", "quantization_config"):
        config.pop(volatile, None)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # what the last call asked for
        vocabulary.pop(state, None)
    parts = [
        weights_digest(model),
        json.dumps(config, sort_keys=True, default=str),
        json.dumps(vocabulary, sort_keys=True),
        str(tokenizer.chat_template),
    ]
    if adapters := adapter_state(model):  # the digest has the weights of those not active, too
        parts.append(adapters)
    digest = fingerprint(*parts, *_runtime(model))
    return TransformersModel(
        model,
        tokenizer,
        fingerprint=digest,
        arena_budget_bytes=arena_budget_bytes,
        today=today,
        max_batch=max_batch,
    )


def locate(source: str) -> tuple[str, dict[str, str]]:
    """Return what transformers' loaders take, and the options that go with it."""
    if source.startswith(PREFIX):
        return str(bundled_folder(source)), {}
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(f"{path} is neither a model folder nor a .gguf file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        return str(path), {}
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or path.suffix == ".gguf":
        raise ModelNotFound(
            f"there is no model folder or file {source!r}; "
            "give a folder, a .gguf file, a hub id (owner/name) or bundled:smollm2"
        )
    return source, {}


def _files_digest(folder: str, options: dict[str, str]) -> str:
    root = Path(folder)
    if not root.is_dir():
        config = cached_file(folder, "config.json")
        assert config is not None
        root = Path(config).parent
    files = [root / options["gguf_file"]] if options else _shaping(root)
    return folder_digest(files, root=root, memory=user_cache_folder() / "digests.json")


def _shaping(root: Path) -> list[Path]:
    """Return the files of a model's folder that may shape its tokens or weights."""
    files = [
        p
        for p in root.iterdir()
        if p.suffix in _SHAPING
        and p.is_file()
        and not p.name.lower().startswith(_PAPERS)
        and p.name not in _OF_TRAINING
    ]
    # transformers loads these, not the pickled weights that a whole download has besides.
    if {"model.safetensors", "model.safetensors.index.json"} & {p.name for p in files}:
        files = [p for p in files if not p.name.startswith("pytorch_model")]
    return files


def _runtime(model: PreTrainedModel) -> list[str]:
    """What shapes KV besides the files: element type, attention kernel and quantisation."""
    quantization = quantization_of(model)
    kernel = str(model.config._attn_implementation)
    return [str(model.dtype), kernel, *([quantization] if quantization else [])]


def named_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name.

    Raises:
        ConfigError: There is none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"dtype must be a torch dtype such as float32 or bfloat16, not {name!r}")
    return found
