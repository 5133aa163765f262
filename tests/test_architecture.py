"""The house rules that a program can read off the sources: who imports whom, what is imported late, what is documented.

Everything here looks at the files with `ast`; only the import-time tests run anything.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "trimtab"

BELOW_AGENTS = {"core", "batches", "ops", "nets", "policies"}
EVERYTHING = None

MAY_IMPORT: dict[str, set[str] | None] = {
    "errors": set(),
    "core": {"errors"},
    "ranges": {"errors"},
    "batches": {"core"},
    "ops": {"core", "batches"},
    "nets": {"core", "batches", "ops"},
    "policies": {"core", "batches", "ops", "nets"},
    "agents": BELOW_AGENTS,  # and agents/__init__ its own files; see the test on agents
    "envs": {"core", "batches"},
    "data": {"core", "batches", "envs"},
    "diagnostics": BELOW_AGENTS,
    "run": {"errors"},
    "training": {"core", "errors", "batches", "data", "run", "envs", "policies"},  # of policies only Uniform
    "ope": BELOW_AGENTS | {"data", "envs", "run", "training"},  # its critic trains in training's loop
    "language": {"errors", "run"},  # nothing of the JAX side
    "games": BELOW_AGENTS | {"envs", "data"},
    "causal": BELOW_AGENTS | {"envs", "data"},
    "logic": BELOW_AGENTS | {"envs", "data"},
    "memory": BELOW_AGENTS | {"envs", "data"},
    "assemble": BELOW_AGENTS | {"agents", "diagnostics", "envs", "data", "run", "training"},
    "presets": set(),  # plain numbers
    "papers": EVERYTHING,
    "cli": EVERYTHING,
    "api": EVERYTHING,
    "__init__": EVERYTHING,
    "__main__": EVERYTHING,
}
"""Room -> the rooms it may import beside itself (DESIGN, section 3)."""

LAZY = (
    "rliable",
    "minari",
    "h5py",
    "ogbench",
    "torch",
    "trl",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "onnx",
    "onnxruntime",
    "ray",
    "optuna",
    "wandb",
    "mlflow",
)
"""Imported late and in one file each, with an error that names what to install."""

AT_HOME_IN = dict.fromkeys(("torch", "trl", "transformers", "peft", "accelerate", "datasets"), "language")
"""Rooms which a library of `LAZY` is the whole point of: there it may be imported at will."""


@dataclass(frozen=True)
class Import:
    """One import: by which file, of what, on which line, and whether it runs when the file is imported."""

    file: Path
    target: str
    line: int
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT.parent)}:{self.line} imports {self.target}"


def files() -> list[Path]:
    return sorted(file for file in ROOT.rglob("*.py") if "__pycache__" not in file.parts)


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), filename=str(file))


def room(file: Path) -> str:
    """The folder below trimtab/, or the name of a file that lies there itself."""
    parts = file.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else file.stem


def resolve(node: ast.AST, file: Path) -> list[str]:
    """The dotted names which an import statement, or `import_module("x")`, brings in."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            base = module or ""
            if level:
                package = ("trimtab", *file.relative_to(ROOT).parts[:-1])
                base = ".".join([*package[: len(package) - level + 1], *([module] if module else [])])
            # `from trimtab import envs` is about trimtab.envs; other names stay with the module that holds them.
            folder = ROOT.joinpath(*base.split(".")[1:]) if base.split(".")[0] == "trimtab" else None
            found = []
            for alias in names:
                inner = folder is not None and (
                    (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").is_file()
                )
                found.append(f"{base}.{alias.name}" if inner else base)
            return found
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(target)), *_]):
            return [target] if "import" in name else []
    return []


def imports(file: Path) -> list[Import]:
    """All imports of a file. Those under TYPE_CHECKING are left out: they run never."""
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        found.extend(Import(file, target, node.lineno, at_import) for target in resolve(node, file))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not inside)

    visit(tree(file), True)
    return found


def own(file: Path) -> Iterator[tuple[Import, str]]:
    """Imports of Trimtab itself, with the room they reach."""
    for item in imports(file):
        parts = item.target.split(".")
        if parts[0] == "trimtab":
            yield item, parts[1] if len(parts) > 1 else "__init__"


def tops(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


# Who imports whom


def test_the_sources_are_found():
    assert {"core", "batches", "ops", "nets", "policies", "agents"} <= {room(file) for file in files()}
    assert any(reached == "core" for file in files() for _, reached in own(file))


def test_every_room_has_its_place():
    unknown = {room(file) for file in files()} - MAY_IMPORT.keys()
    assert not unknown, f"say in MAY_IMPORT what these rooms may import: {sorted(unknown)}"


def test_import_directions():
    wrong = []
    for file in files():
        allowed = MAY_IMPORT.get(room(file), EVERYTHING)
        if allowed is EVERYTHING:
            continue
        for item, reached in own(file):
            only_the_version = reached == "__init__" and "__version__" in file.read_text()  # the root is cheap
            if reached != room(file) and reached not in allowed and not only_the_version:
                wrong.append(str(item))
    assert not wrong, "\n".join(wrong)


def test_agents_never_import_agents():
    wrong = [
        str(item)
        for file in files()
        if room(file) == "agents" and file.name != "__init__.py"
        for item, reached in own(file)
        if reached == "agents"
    ]
    assert not wrong, "\n".join(wrong)


def test_training_knows_of_policies_only_uniform():
    wrong = []
    for file in files():
        if room(file) != "training":
            continue
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trimtab.policies"):
                wrong += [f"{file.name}: {alias.name}" for alias in node.names if alias.name != "Uniform"]
    assert not wrong, wrong


def test_reports_see_only_files_on_disk():
    # All that run/report.py reaches lies in run/ and does without JAX.
    start = ROOT / "run" / "report.py"
    todo, seen = [start] if start.exists() else [], set()
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for item in imports(file):
            assert item.target.split(".")[0] not in ("jax", "equinox", "optax"), str(item)
        for item, reached in own(file):
            assert reached == "run" or "__version__" in file.read_text(), str(item)
            path = ROOT.joinpath(*item.target.split(".")[1:])
            todo += [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()]
    assert not start.exists() or len(seen) > 1


def test_language_and_the_jax_side_do_not_know_each_other():
    for file in files():
        for item, reached in own(file):
            if reached == "language":
                assert room(file) in ("language", "papers", "cli", "api", "__init__"), str(item)
        if room(file) == "language":
            assert not [str(item) for item in imports(file) if item.target.split(".")[0] in ("jax", "equinox", "optax")]


# What is imported late


@pytest.mark.parametrize("library", LAZY)
def test_heavy_libraries_are_imported_late_and_in_one_place(library):
    found = [
        item
        for file in files()
        if room(file) != AT_HOME_IN.get(library)
        for item in imports(file)
        if item.target.split(".")[0] == library
    ]
    early = [str(item) for item in found if item.at_import]
    assert not early, f"import {library} inside the function that needs it: {early}"
    assert len({item.file for item in found}) <= 1, "\n".join(map(str, found))


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout


def test_import_trimtab_is_quick_and_brings_no_jax():
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT.parent)!r})
start = time.process_time()
import trimtab
print(time.process_time() - start, *(name for name in ("jax", "gymnasium", "matplotlib") if name in sys.modules))
"""
    seconds, *heavy = run_python(code).split()
    assert not heavy, f"`import trimtab` brings {heavy}"
    assert float(seconds) < 2.5


def test_importing_the_agents_brings_no_environments_nor_plots():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT.parent)!r})
import trimtab.agents
print(*(name for name in ("gymnasium", "mujoco", "matplotlib", "torch", "rliable") if name in sys.modules))
"""
    assert run_python(code).split() == []


# How the code reads


AGENT_FILES = sorted(file for file in (ROOT / "agents").glob("[!_]*.py"))


@pytest.mark.parametrize("file", AGENT_FILES, ids=lambda file: file.stem)
def test_an_agent_is_one_file_in_the_fixed_order(file):
    assert len(file.read_text().splitlines()) <= 300
    doc = ast.get_docstring(tree(file)) or ""
    for part in ("Metrics:", "Order in one update", "Differences from"):
        assert part in doc, f"the docstring of {file.name} lacks its part {part!r}"
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", doc), f"{file.name} does not name its paper"
    classes = [node for node in tree(file).body if isinstance(node, ast.ClassDef)]
    assert classes[0].name == "Config" and len(classes) >= 2
    (decorator,) = classes[0].decorator_list
    assert ast.unparse(decorator) == "dataclass(frozen=True)"
    agents = [
        n for n in classes if {"AbstractAgent", "AbstractScorer", "AbstractSurprised"} & set(map(ast.unparse, n.bases))
    ]
    assert len(agents) == 1, "one method, one file"
    methods = [node.name for node in agents[0].body if isinstance(node, ast.FunctionDef)]
    assert methods[:4] == ["create", "policy", "explorer", "update"]


@pytest.mark.parametrize("file", AGENT_FILES, ids=lambda file: file.stem)
def test_every_config_field_says_what_it_is(file):
    (config,) = (node for node in tree(file).body if isinstance(node, ast.ClassDef) and node.name == "Config")
    fields = 0
    for node, after in zip(config.body, [*config.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            fields += 1
            said = (
                isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and str(after.value.value).strip()
            )
            assert said, f"{file.name}: Config.{ast.unparse(node.target)} has no docstring"
            assert node.value is not None, f"{file.name}: Config.{ast.unparse(node.target)} has no default"
    assert fields


def test_every_agent_file_is_listed():
    from trimtab.agents import AGENTS

    assert {cls.__module__.rsplit(".", 1)[1] for cls in AGENTS.values()} == {file.stem for file in AGENT_FILES}
    assert list(AGENTS) == sorted(AGENTS)


def test_public_names_have_docstrings():
    inherited = {  # what an abstract class documents need not be documented again
        method.name
        for file in files()
        for node in tops(tree(file))
        if isinstance(node, ast.ClassDef) and node.name.startswith("Abstract")
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }
    bare = []
    for file in files():
        if tree(file).body and not ast.get_docstring(tree(file)):
            bare.append(f"{file.relative_to(ROOT)}: the file itself")
        for node in tops(tree(file)):
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                bare.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
            # Methods too where users of the library look them up.
            looked_up = isinstance(node, ast.ClassDef) and room(file) in BELOW_AGENTS | {"agents", "envs", "data"}
            for method in node.body if looked_up else []:
                public = isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                if public and method.name not in inherited and not ast.get_docstring(method):
                    bare.append(f"{file.relative_to(ROOT)}:{method.lineno} {node.name}.{method.name}")
    assert not bare, "\n".join(bare)


OPEN_SETS = {"training/onnx_graph.py"}
"""Files where `**names` is the thing itself: the attributes of an ONNX node are an open set."""


def test_no_guessing_and_no_pass_through():
    wrong = []
    for file in files():
        for node in ast.walk(tree(file)):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
                wrong.append(f"{where} hasattr")
            if isinstance(node, ast.Name) and node.id == "NotImplementedError":
                wrong.append(f"{where} NotImplementedError")
            closed = str(file.relative_to(ROOT)) not in OPEN_SETS
            if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None and closed:
                name = node.args.kwarg.arg
                calls = (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))
                passed = (kw for call in calls for kw in call.keywords if kw.arg is None)
                if any(isinstance(kw.value, ast.Name) and kw.value.id == name for kw in passed):
                    wrong.append(f"{where} {node.name} passes **{name} through")
    assert not wrong, "\n".join(wrong)


def test_methods_are_not_compiled_where_they_are_written():
    # jit and donation stand in training/compile.py; below it everything is a plain function.
    wrong = []
    for file in files():
        if room(file) in BELOW_AGENTS | {"agents"}:
            for node in ast.walk(tree(file)):
                name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
                if name in ("jit", "filter_jit", "pmap"):
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno} {name}")
    assert not wrong, "\n".join(wrong)
