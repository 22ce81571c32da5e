"""The plan of the house, held: which room may import which, what stays light, how long a file may be."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import lookalike

SOURCE = Path(lookalike.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [path.relative_to(SOURCE).as_posix() for path in FILES]

# A room imports only from the layers below its own.
LAYERS = (
    {"errors"},
    {"extras", "files", "concurrency", "hardware"},
    {"image"},
    {"recipe"},
    {"run"},
    {"data", "losses"},
    {"models"},
    {"evaluation"},
    {"reports"},
    {"training", "gallery"},
    {"reproduce", "serve"},
    {"cli"},
)
MAY_IMPORT = {room: set().union(*LAYERS[:floor]) for floor, layer in enumerate(LAYERS) for room in layer}
MAY_IMPORT["models"] -= {"data", "losses", "run"}
MAY_IMPORT["gallery"] -= {"losses", "reports", "run"}
MAY_IMPORT["serve"] -= {"data", "losses", "evaluation", "reports", "training", "run"}
HEAVY = {"torch", "timm", "tensorboard"}
MAY_LOAD_TORCH_IN_DATA = {"data/augment.py", "data/loader.py", "data/sampler.py"}


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imports(nodes: Iterator[ast.AST], path: Path) -> Iterator[str]:
    """Absolute dotted names of everything imported by these nodes; `from a import b` gives both a and a.b."""
    package = ("lookalike", *path.relative_to(SOURCE).parent.parts)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_entered(path: Path) -> set[str]:
    names = imports(ast.walk(ast.parse(path.read_text())), path)
    inside = (name.split(".") for name in names if name.startswith("lookalike."))
    return {parts[1] for parts in inside if parts[1] in MAY_IMPORT} - {room_of(path)}


def at_import(path: Path) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not those inside functions or under `if TYPE_CHECKING`."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo.extend(node.orelse)
            continue
        todo.extend(ast.iter_child_nodes(node))


def test_every_file_lives_in_a_room() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} <= MAY_IMPORT.keys()


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path != SOURCE / "__init__.py"],
    ids=lambda path: path.relative_to(SOURCE).as_posix(),
)
def test_no_room_enters_one_that_it_may_not(path: Path) -> None:
    assert rooms_entered(path) <= MAY_IMPORT[room_of(path)]


@pytest.mark.parametrize(
    ("text", "entered"),
    [
        ("import lookalike.gallery.index", {"gallery"}),
        ("from lookalike import serve", {"serve"}),
        ("from lookalike.training.loop import train", {"training"}),
        ("def f():\n    from lookalike.cli import main", {"cli"}),
        ("from ..gallery import index", {"gallery"}),
        ("from .resnet import ResNet", set()),
        ("from lookalike import __version__", set()),
    ],
)
def test_the_arrows_are_seen_however_an_import_is_written(
    text: str, entered: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    path = tmp_path / "models" / "cubs.py"
    path.parent.mkdir()
    path.write_text(text)
    assert rooms_entered(path) == entered


def stays_light(name: str) -> bool:
    if name.startswith("data/"):
        return name not in MAY_LOAD_TORCH_IN_DATA
    return name.startswith("cli/") or "/" not in name


@pytest.mark.parametrize("name", [name for name in NAMES if stays_light(name)])
def test_light_files_load_no_torch_at_import(name: str) -> None:
    path = SOURCE / name
    loaded = {module.split(".")[0] for module in imports(at_import(path), path)}
    assert not loaded & HEAVY


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after this code, in a fresh interpreter."""
    code = f"import sys\n{code}\nprint('\\n'.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_lookalike_is_light() -> None:
    assert not loaded_by("import lookalike") & {"torch", "numpy", "pyarrow", "pydantic", "typer", "yaml"}


HELP = (
    "sys.argv = ['lookalike', '--help']\n"
    "from lookalike.cli.main import run\n"
    "try:\n    run()\n"
    "except SystemExit as left:\n    assert left.code == 0, left.code"
)


def test_help_loads_nothing_heavy() -> None:
    assert not loaded_by(HELP) & {"torch", "numpy", "pyarrow", "pydantic", "PIL", "matplotlib", "httpx"}


def processor_seconds(code: str) -> float:
    """Of a fresh interpreter that runs this code."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


BARE = "import sys, typer\nsys.argv = ['bare', '--help']\ntyper.run(lambda: None)"


def test_help_answers_in_half_a_second() -> None:
    """Of the processor's time; on a slow or busy machine, in 1.75 times what Typer alone takes there."""
    ours = []
    for _ in range(5):
        ours.append(processor_seconds(f"import sys\n{HELP}"))
        if ours[-1] < max(0.5, 1.75 * processor_seconds(BARE)):
            return
    raise AssertionError(f"lookalike --help took {min(ours):.2f} s at best")


def test_lazy_names_arrive_and_unknown_ones_do_not() -> None:
    code = (
        "import lookalike as l; assert all(callable(getattr(l, name)) for name in l.__all__ if name != '__version__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = lookalike.lode
    assert set(lookalike.__all__) <= set(dir(lookalike))


def undocumented(path: Path) -> Iterator[str]:
    """Public functions, classes and methods without a docstring, but for properties, overloads and `forward`."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                decorators = " ".join(ast.dump(decorator) for decorator in member.decorator_list)
                is_exempt = "property" in decorators or "overload" in decorators
                if not is_exempt and member.name != "forward" and not ast.get_docstring(member):
                    yield f"{node.name}.{member.name}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_public_functions_say_what_they_do(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} does not say what it is"
    assert list(undocumented(path)) == []


def module_name(path: Path) -> str:
    return ".".join(("lookalike", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """Each module and the modules it imports: also inside functions and under `if TYPE_CHECKING`.

    The package itself is left out: it imports each public name when it is first used.
    """
    modules = {module_name(path): path for path in FILES if path != SOURCE / "__init__.py"}
    return {
        name: {other for other in imports(ast.walk(ast.parse(path.read_text())), path) if other in modules} - {name}
        for name, path in modules.items()
    }


def test_no_modules_import_each_other() -> None:
    graph = {name: [*others] for name, others in import_graph().items()}
    for name, others in graph.items():  # a module of a package needs the package, which may import other modules of it
        graph[name] = [other for other in others if not name.startswith(f"{other}.")]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_no_public_class_name_is_used_twice() -> None:
    places = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(SOURCE).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_test_files_have_names_of_their_own() -> None:
    """Pytest imports them by their base name."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
