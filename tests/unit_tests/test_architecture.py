"""The house as designed: layers, no cycles, file sizes, names that say something."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import centroidkv
from centroidkv import errors

SRC = Path(centroidkv.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
WORDS = {"types", "protocols", "config", "errors", "files", "sqlite_files", "fingerprint",
         "settings", "tool_calls", "rotary", "plan_config", "remote_settings",
         "placement", "reasons", "decoding", "sqlite_scrubbing", "sqlite_checks", "sqlite_sharing",
         "breaker", "observing", "bounds", "block_form", "secret_keys",
         "server_address", "sealing", "vault", "error_kinds", "links",
         "locks", "metadata"}  # fmt: skip
PARTS = {"kv", "models", "routing"}
EDGES = {"cli", "cli_precision", "cli_privacy", "cli_versions", "langchain", "llama_index"}
BANNED_FILES = {"utils", "util", "helpers", "helper", "manager", "handler", "base", "common",
                "misc", "info", "process", "data"}  # fmt: skip
BANNED_NAMES = re.compile(r"Manager$|Handler$|Helper$|Utils$|KVStore")


def module(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports(path: Path) -> set[str]:
    """Return the package's own modules that a file imports, relative to the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("centroidkv"):
            name = (node.module or "").removeprefix("centroidkv").lstrip(".")
            found.add(name or "__root__")
    return found


def room(name: str) -> str:
    """Return the room of a module; the command line is in four files."""
    top = name.split(".", maxsplit=1)[0]
    return "cli" if top in ("cli_precision", "cli_privacy", "cli_versions") else top


def layer(name: str) -> int:
    top = name.split(".", maxsplit=1)[0]
    if top in WORDS:
        return 0
    if top in PARTS:
        return 1
    return 3 if top in EDGES else 2


def test_layers_import_only_what_lies_below_them() -> None:
    wrong = []
    for path in FILES:
        name = module(path)
        # The doors: the package's names, the command, and `accelerate`, which leads to the edge of
        # the framework that it was given a chain of.
        if name in ("", "__main__", "acceleration"):
            continue
        for other in imports(path):
            top, other_top = room(name), room(other)
            mine, theirs = layer(name), layer(other)
            sibling = mine == theirs and mine in (1, 3) and top != other_top
            if other == "__root__":
                sibling = mine != 3
            if theirs > mine or sibling or (mine == 3 and theirs == 1):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_there_are_no_import_cycles() -> None:
    graph = {module(p): {i for i in imports(p) if i != module(p)} for p in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in graph.get(name, set()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_rooms_have_no_cycles() -> None:
    """A room that imports another is not imported by it, not even by way of a third."""
    rooms = {p.parent.name for p in SRC.glob("*/__init__.py")}
    graph: dict[str, set[str]] = {name: set() for name in rooms}
    for path in FILES:
        own = module(path).split(".", maxsplit=1)[0]
        if own in rooms:
            graph[own] |= {i.split(".", maxsplit=1)[0] for i in imports(path)} & rooms - {own}
    assert set(TopologicalSorter(graph).static_order()) == rooms


def test_files_and_functions_stay_small() -> None:
    big = []
    for path in FILES:
        text = path.read_text("utf-8")
        if text.count("\n") > 350:
            big.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
                if length > 40:
                    big.append(f"{path.name}: {node.name} has {length} lines")
                positional = [a for a in node.args.args if a.arg not in ("self", "cls")]
                if len(positional) > 5:
                    big.append(f"{path.name}: {node.name} has {len(positional)} parameters")
    assert big == []


def test_names_say_something() -> None:
    assert [p.name for p in FILES if p.stem in BANNED_FILES] == []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                assert not BANNED_NAMES.search(node.name), f"{path.name}: {node.name}"


def test_every_module_says_what_it_owns() -> None:
    assert [p.name for p in FILES if not ast.get_docstring(ast.parse(p.read_text("utf-8")))] == []


def test_only_the_named_files_know_chroma_and_cache_classes() -> None:
    chroma = [
        p.name for p in FILES if re.search(r"(?m)^\s*(import|from) chromadb", p.read_text("utf-8"))
    ]
    caches = [p.name for p in FILES if "cache_utils" in p.read_text()]
    assert sorted(chroma) == [
        "chroma_client.py", "chroma_collections.py", "embedded_chroma.py",
    ]  # fmt: skip
    assert caches == ["arena.py"]


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        text = path.read_text("utf-8")
        found = re.search(r"import (pickle|joblib|dill)|torch\.load\(|allow_pickle=True", text)
        assert found is None, path.name


def test_public_names_are_sorted_and_there() -> None:
    assert list(centroidkv.__all__) == sorted(centroidkv.__all__)
    for name in centroidkv.__all__:
        assert hasattr(centroidkv, name)


def test_every_error_is_in_the_tree_that_its_docstring_draws() -> None:
    for name in errors.__all__:
        assert name in (errors.__doc__ or ""), name
        assert issubclass(getattr(errors, name), errors.CentroidKVError)


TAKES_VAULT = {"DiskBlocks", "Manifest", "History", "open_history", "AnswerStore", "DraftStore",
               "PlanFolder", "load_plan", "save_plan", "load_block", "save_block", "save_coded",
               "PromptHeads", "ForgetLog", "load_parts", "save_parts"}  # fmt: skip
KNOWLEDGE = {"save", "load"}  # of `KnowledgeBase` and `Calibration`, by their receivers' names


def test_what_a_store_holds_is_written_and_read_with_its_vault() -> None:
    without = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            receiver, _, name = called.rpartition(".")
            is_kept = name in KNOWLEDGE and receiver in ("KnowledgeBase", "base", "fitted",
                                                         "Calibration")  # fmt: skip
            if receiver.endswith("store"):  # hands out files that it opens with its own
                continue
            given = ast.unparse(ast.Tuple([*node.args, *(k.value for k in node.keywords)]))
            if (name in TAKES_VAULT or is_kept) and "vault" not in given:
                without.append(f"{path.name}:{node.lineno} {called}")
    assert without == []


def test_unit_tests_open_no_engine() -> None:
    opening = re.compile(r"\bEngine\.open|\bdef test\w*\([^)]*\b(open_engine|engine|built)\b")
    opened = [
        path.name
        for path in sorted(Path(__file__).parent.rglob("test_*.py"))
        if path != Path(__file__) and opening.search(path.read_text("utf-8"))
    ]
    assert opened == [], "these belong in tests/engine_tests"
