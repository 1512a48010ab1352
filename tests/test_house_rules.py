"""The rules of the house that a linter does not know, checked by reading the code.

Each rule is a function from a parsed file to its breaches, so that the rules themselves are tested
too: on a few lines that break them.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bsrnn_core", "data_prep", "pipelines")
"""From the lowest to the highest: a package imports itself and those before it."""

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60

OUT_OF_BOUNDS = {
    "bsrnn_core": {"argparse", "mlflow", "musdb", "pyarrow", "ray", "rich", "tyro", "yaml"},
    "data_prep": {"mlflow", "ray.train", "ray.tune", "tyro"},
    "pipelines": {"argparse", "musdb"},
}
"""Libraries that a package does without."""

ONLY_IN = {
    "mlflow": (
        "pipelines/tracking.py",
        "pipelines/tracking_models.py",
        "pipelines/mlflow_gate.py",
    ),
    "matplotlib": (
        "pipelines/plots.py",
        "pipelines/comparison_plots.py",
        "pipelines/tune_plots.py",
    ),
}
"""Libraries that these files alone know."""

ONLY_WHERE_USED = {"mlflow", "museval", "musdb", "stempeg"}
"""Libraries imported inside the function that needs them: slow, or failing without ffmpeg."""

HARMLESS_CALLS = {
    *("dict", "dict.fromkeys", "float", "frozenset", "len", "range", "set", "tuple"),
    *("Path", "TypeVar", "dataclass", "field", "functools.cache", "functools.lru_cache"),
    *(
        "logging.getLogger",
        "re.compile",
        "np.dtype",
        "pa.float16",
        "pa.float32",
        "ray.remote",
        "torch.inference_mode",
    ),
}
"""Calls that may stand outside functions: they define something and touch nothing."""


@dataclass(frozen=True)
class Source:
    """A file's text and tree."""

    name: str
    text: str

    @property
    def package(self) -> str:
        return self.name.split("/")[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


SOURCES = [
    Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
]
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The full names that import statements bind: of ``from a import b``, a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)


def is_within(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs at import: all but function bodies and the `__main__` and typing blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and re.match(
            r"__name__|(typing\.)?TYPE_", ast.unparse(node.test)
        ):
            continue
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            for part in [*node.decorator_list, *arguments]:
                yield from ast.walk(part)
        elif not isinstance(node, ast.Lambda):
            yield from outside_functions(node)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods that others may call: no nested ones, no leading underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)


# --- the rules ------------------------------------------------------------------------------


def upward_imports(source: Source) -> list[str]:
    above = PACKAGES[PACKAGES.index(source.package) + 1 :]
    names = imports(ast.walk(source.tree))
    return [name for name in names if any(is_within(name, package) for package in above)]


def relative_imports(source: Source) -> list[str]:
    return [name for name in imports(ast.walk(source.tree)) if name.startswith(".")]


def forbidden_imports(source: Source) -> list[str]:
    found = []
    for name in imports(ast.walk(source.tree)):
        for library in OUT_OF_BOUNDS[source.package]:
            if is_within(name, library):
                found.append(f"{name} in {source.package}")
        for library, homes in ONLY_IN.items():
            if is_within(name, library) and source.name not in homes:
                found.append(f"{name} outside {' and '.join(homes)}")
    return found


def early_imports(source: Source) -> list[str]:
    names = imports(outside_functions(source.tree))
    return [name for name in names if any(is_within(name, lib) for lib in ONLY_WHERE_USED)]


def calls_at_import(source: Source) -> list[str]:
    """Calls outside functions that are not known to be harmless, with their lines."""
    # A decorator without a call is only a name, and a class of this file only makes a value.
    classes = {node.name for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)}
    return [
        f"line {node.lineno}: {name}"
        for node in outside_functions(source.tree)
        if isinstance(node, ast.Call)
        and (name := ast.unparse(node.func)) not in HARMLESS_CALLS | classes
    ]


def loops_at_import(source: Source) -> list[str]:
    work = ast.For | ast.While | ast.With | ast.Try | ast.Delete
    return [ast.unparse(n) for n in outside_functions(source.tree) if isinstance(n, work)]


def long_functions(source: Source) -> list[str]:
    return [
        f"{node.name}: {lines} lines"
        for node in functions(source.tree)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def prints(source: Source) -> list[str]:
    calls = (node for node in ast.walk(source.tree) if isinstance(node, ast.Call))
    return [
        f"line {c.lineno}" for c in calls if ast.unparse(c.func) in ("print", "sys.stdout.write")
    ]


def undocumented(source: Source) -> list[str]:
    return [node.name for node in public_functions(source.tree) if not ast.get_docstring(node)]


def unannotated(source: Source) -> list[str]:
    found = []
    for node in functions(source.tree):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments += filter(None, [node.args.vararg, node.args.kwarg])
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        if bare or node.returns is None:
            found.append(
                f"{node.name}: {', '.join([*bare, *(['return'] * (node.returns is None))])}"
            )
    return found


def more_than_exports(source: Source) -> list[str]:
    """Statements of an __init__.py beyond a docstring, imports, __all__ and lazy re-exports."""
    return [
        f"line {node.lineno}"
        for node in source.tree.body
        if not isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.Assign | ast.AnnAssign) and is_name_table(node))
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        and not (isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__"))
    ]


def is_name_table(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return all(isinstance(target, ast.Name) and target.id.startswith("_") for target in targets)


def has_no_docstring(source: Source) -> list[str]:
    empty_init = source.name.endswith("__init__.py") and not source.text.strip()
    return [] if empty_init or ast.get_docstring(source.tree) else [source.name]


# --- applied to the packages ----------------------------------------------------------------

RULES = [
    upward_imports,
    relative_imports,
    forbidden_imports,
    early_imports,
    calls_at_import,
    loops_at_import,
    long_functions,
    undocumented,
    unannotated,
    has_no_docstring,
]


@every_source
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(source: Source, rule):
    assert rule(source) == []


@every_source
def test_files_are_short(source: Source):
    assert source.text.count("\n") <= MAX_FILE_LINES


@pytest.mark.parametrize("source", [s for s in SOURCES if s.package == "bsrnn_core"],
                         ids=lambda source: source.name)  # fmt: skip
def test_the_core_does_not_print(source: Source):
    assert prints(source) == []


def test_init_files_only_re_export():
    inits = [source for source in SOURCES if source.name.endswith("__init__.py")]
    assert len(inits) == len(PACKAGES)
    assert {source.name: more_than_exports(source) for source in inits} == {
        source.name: [] for source in inits
    }


def test_the_packages_are_those_that_are_installed():
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^packages = \["bsrnn_core", "data_prep", "pipelines"\]$', project, re.M)
    assert [source.name for source in SOURCES if source.name.count("/") > 1] == []


# --- the rules, on code that breaks them ----------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (upward_imports, "bsrnn_core/a.py", "from data_prep.shards import X"),
        (upward_imports, "data_prep/a.py", "def f():\n    import pipelines.cli"),
        (relative_imports, "data_prep/a.py", "from . import shards"),
        (forbidden_imports, "bsrnn_core/a.py", "import ray.data as rd"),
        (forbidden_imports, "data_prep/a.py", "from ray import train"),
        (forbidden_imports, "pipelines/a.py", "def f():\n    from mlflow.tracking import X"),
        (forbidden_imports, "pipelines/a.py", "from matplotlib import pyplot"),
        (forbidden_imports, "pipelines/plots.py", "def f():\n    import mlflow"),
        (forbidden_imports, "pipelines/comparison.py", "from matplotlib.axes import Axes"),
        (early_imports, "bsrnn_core/a.py", "import museval"),
        (early_imports, "pipelines/tracking.py", "try:\n    import mlflow\nexcept E:\n    pass"),
        (calls_at_import, "pipelines/a.py", "import ray\nray.init()"),
        (calls_at_import, "pipelines/a.py", "class A:\n    folder = make()"),
        (calls_at_import, "pipelines/a.py", "def f(x=now()):\n    pass"),
        (calls_at_import, "pipelines/a.py", "@register('f')\ndef f():\n    pass"),
        (calls_at_import, "pipelines/a.py", "if here():\n    X = 1"),
        (loops_at_import, "pipelines/a.py", "for i in X:\n    pass"),
        (long_functions, "pipelines/a.py", "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES),
        (prints, "bsrnn_core/a.py", "def f():\n    print(1)"),
        (undocumented, "pipelines/a.py", "class A:\n    def f(self): pass"),
        (unannotated, "pipelines/a.py", "def f(x: int): pass"),
        (unannotated, "pipelines/a.py", "def f(*x) -> None: pass"),
        (more_than_exports, "pipelines/__init__.py", "def f(): pass"),
        (more_than_exports, "pipelines/__init__.py", "X = 1"),
        (has_no_docstring, "pipelines/a.py", "X = 1"),
    ],
)  # fmt: skip
def test_a_breach_is_found(rule, name: str, text: str):
    assert rule(Source(name, text)) != []


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (upward_imports, "pipelines/a.py", "import bsrnn_core.model, data_prep"),
        (forbidden_imports, "pipelines/tracking.py", "import mlflow"),
        (forbidden_imports, "pipelines/plots.py", "import matplotlib"),
        (forbidden_imports, "pipelines/comparison_plots.py", "from matplotlib.axes import Axes"),
        (forbidden_imports, "data_prep/a.py", "import ray.data"),
        (early_imports, "bsrnn_core/a.py", "def f():\n    import museval"),
        (early_imports, "pipelines/a.py", "if TYPE_CHECKING:\n    import mlflow"),
        (calls_at_import, "pipelines/a.py", "def f():\n    g()\nh = lambda: g()"),
        (calls_at_import, "pipelines/a.py", "if __name__ == '__main__':\n    f()"),
        (long_functions, "pipelines/a.py", "def f():\n" + "    pass\n" * (MAX_FUNCTION_LINES - 1)),
        (undocumented, "pipelines/a.py", "def _f(): pass\ndef g():\n    'Do.'\n    def h(): pass"),
        (unannotated, "pipelines/a.py", "def f(self, x: int) -> None: pass"),
        (more_than_exports, "pipelines/__init__.py", "'Doc.'\nfrom a import b\n__all__ = ['b']"),
    ],
)  # fmt: skip
def test_good_code_passes(rule, name: str, text: str):
    assert rule(Source(name, text)) == []
