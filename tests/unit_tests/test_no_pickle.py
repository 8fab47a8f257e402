"""Nothing that the package reads can run code: looked for in the syntax tree of every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import centroidkv

FILES = sorted(Path(centroidkv.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib",
           "jsonpickle", "dbm"}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__"}
# Calls by their last name, and the argument that makes them safe: its name and value.
ONLY_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
NEVER = {"yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "numpy.load", "np.save",
         "torch.save", "pandas.read_pickle", "pd.read_pickle", "os.execv", "os.spawnv"}  # fmt: skip
OPTIONS = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False}


def name_of(node: ast.expr) -> str:
    """Return a dotted name as it is written, as far as it is one."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        else:
            names = []
        yield from (n for n in names if n.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            yield from called(node)


def called(node: ast.Call) -> Iterator[str]:
    name = name_of(node.func)
    given = {k.arg: getattr(k.value, "value", "?") for k in node.keywords}
    if name in CALLS or name in NEVER or name.split(".")[0] == "builtins":
        yield name
    if name in ONLY_WITH:
        option, value = ONLY_WITH[name]
        if given.get(option) is not value:
            yield f"{name} without {option}={value}"
    for option, value in OPTIONS.items():
        if option in given and given[option] in (value, "?"):
            yield f"{name}({option}=...)"
    if name == "import_module" or name.endswith(".import_module"):
        target = node.args[0]
        if not isinstance(target, ast.Constant) or str(target.value).split(".")[0] in MODULES:
            yield f"{name} of something that is not known"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_file_can_run_what_it_reads(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import os.path, marshal",
        "from concurrent import dill",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "read(f, allow_pickle=given)",
        "eval(text)",
        "exec(text)",
        "yaml.load(f)",
        "subprocess.run(command, shell=True)",
        "importlib.import_module(name)",
        "importlib.import_module('pickle')",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert list(dangers(ast.parse(line)))


def test_the_search_lets_pass_what_is_safe() -> None:
    assert not list(dangers(ast.parse("torch.load(f, weights_only=True)\nmodel.compile()")))
