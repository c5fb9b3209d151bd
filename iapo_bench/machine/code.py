"""A digest of the code behind a result: the import closure of the module that does the work.

The import closure is read from syntax trees, so no list of files can go stale. A module whose dotted name is in a
string, for importlib, counts as imported, and so does a data file beside a module that names it. The digest ignores
what cannot change a result: comments, docstrings, descriptions of settings and texts of errors.
"""

import ast
import builtins
import hashlib
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from iapo_bench.errors import blamed

ROOT = Path(__file__).resolve().parent.parent.parent
_MODULE = re.compile(r"\w+(\.\w+)+")
_FILE = re.compile(r"[\w-][\w./-]*\.\w+")


def code_digest(module: str, plugins: Iterable[Path] = ()) -> str:
    """A hash of the syntax trees of `module` (a dotted name) and of its imports from this project: 12 hex digits.

    `plugins`: files found by name, such as a method's; they and their imports count as if `module` imported them.
    """
    files = closure(_file(module), *plugins)
    lines = [f"{_label(path)} {_file_digest(path, path.stat().st_mtime_ns)}" for path in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def closure(*files: Path) -> set[Path]:
    """The files, and every file of this project that they import, directly or not."""
    found: set[Path] = set()
    waiting = [path.resolve() for path in files]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path, path.stat().st_mtime_ns)
    return found


def _label(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _file(module: str) -> Path:
    stem = ROOT.joinpath(*module.split("."))
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


@cache
def _imports(path: Path, _changed: int) -> list[Path]:
    """Project files that a file imports, at any level, or names, and the `__init__` of its packages, which run too."""
    if path.suffix != ".py":
        return []
    nodes = list(_running(_parse(path)))
    texts = {text for node in nodes if (text := _text(node))}
    names = {name for node in nodes for name in _imported_names(node, path)} | set(filter(_MODULE.fullmatch, texts))
    folders = (path.parent, path.parent / "templates")  # where jinja2 looks
    data = [folder / text for text in filter(_FILE.fullmatch, texts) for folder in folders]
    packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(ROOT)]
    return [file.resolve() for file in (*packages, *map(_file, names), *data) if file.is_file()]


def _parse(path: Path) -> ast.Module:
    with blamed(path, path.stem, "import"):
        return ast.parse(path.read_bytes(), str(path))


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """A syntax tree's nodes, without `if TYPE_CHECKING` blocks."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (found for branch in child.orelse for found in _running(branch))
        else:
            yield from _running(child)


def _text(node: ast.AST) -> str:
    """A string, or the end of a path such as `folder / "data" / "weights.yaml"`, joined in any way; empty for any other
    node."""
    match node:
        case ast.Constant(value=str(text)):
            return text.strip("/")
        case ast.BinOp(left, ast.Div(), right):
            parts = [left, right]
        case ast.Call(ast.Attribute(folder, "join" | "joinpath"), arguments):
            parts = [folder, *arguments]
        case _:
            return ""
    return "/".join(filter(None, map(_text, parts)))


def _imported_names(node: ast.AST, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = [*path.relative_to(ROOT).parent.parts][: -node.level + 1 or None] if node.level else []
        source = ".".join([*package, *([node.module] if node.module else [])])
        yield source
        # `from package import module` runs the module too; a name that is not a module has no file.
        yield from (f"{source}.{alias.name}" for alias in node.names)


@cache
def _file_digest(path: Path, _changed: int) -> str:
    content = path.read_bytes()
    if path.suffix == ".py":
        content = repr(_plain(_Essence().visit(_parse(path)))).encode()
    return hashlib.sha256(content).hexdigest()


def _plain(node: Any) -> Any:
    """A syntax tree as plain values, without empty fields: each version of Python adds some."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return (type(node).__name__, *fields)
    return [_plain(item) for item in node] if isinstance(node, list) else node


class _Essence(ast.NodeTransformer):
    """A syntax tree without what people read: docstrings, descriptions of settings, texts of errors."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        # Some versions of Python add empty constants or split one: join neighbours.
        whole: list[ast.expr] = []
        for is_text, values in groupby(node.values, lambda value: isinstance(value, ast.Constant)):
            if not is_text:
                whole += values
            elif text := "".join(str(vars(value)["value"]) for value in values):
                whole.append(ast.Constant(text))
        node.values = whole
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name == "Field":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
        kind = getattr(builtins, name, None)
        error = name == "UserError" or (isinstance(kind, type) and issubclass(kind, BaseException))
        call = self.generic_visit(node)
        return _Silent().visit(call) if error else call

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return _Silent().visit(self.generic_visit(node))

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)


class _Silent(ast.NodeTransformer):
    """A statement with empty strings."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.copy_location(ast.Constant(""), node) if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.copy_location(ast.Constant(""), node)


def differences(before: Any, after: Any, limit: int = 3) -> str:
    """What differs between two identities, in words: "since train.lr is 0.2, was 0.1 and 2 more"."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    changed = [key for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)]
    # A group that was or became empty is told by its items.
    changed = [key for key in changed if not any(other.startswith(f"{key}.") for other in changed)]
    told = [f"{key} is {_short(new.get(key))}, was {_short(old.get(key))}" for key in changed[:limit]]
    more = f" and {len(changed) - limit} more" if len(changed) > limit else ""
    return "since " + "; ".join(told) + more if told else "though nothing differs"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def source_if_unknown(path: Path) -> str | None:
    """The text of a file that is untracked, changed or in no git repository; None if git holds it as it is."""
    try:
        git = ["git", "-C", str(path.parent)]
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", path.name], capture_output=True, check=False)
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", path.name], capture_output=True, check=False)
    except OSError:
        return path.read_text()
    return None if tracked.returncode == clean.returncode == 0 else path.read_text()
