"""Writes the files of `iapo-bench new`."""

import keyword
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from iapo_bench.config.report import refused_row
from iapo_bench.errors import UserError
from iapo_bench.files import read_text, whole_file
from iapo_bench.new import Kind
from iapo_bench.plugins import (
    DATASET_DIRS,
    METHOD_DIRS,
    REWARD_DIRS,
    ROOT,
    list_datasets,
    list_methods,
    list_rewards,
)

# The folder of a new file, and all files of its kind by name.
_FOLDERS: dict[Kind, tuple[Path, Callable[[], dict[str, Path]]]] = {
    "method": (METHOD_DIRS[0], list_methods),
    "dataset": (DATASET_DIRS[0], list_datasets),
    "reward": (REWARD_DIRS[0], list_rewards),
}


def write_new(kind: Kind, name: str, root: Path = ROOT) -> tuple[Path, Path]:
    """Write `<folder>/<name>.py` and `tests/test_<name>.py` below `root`; return both.

    Raises UserError, and writes nothing, for a name that is taken or not a lower-case Python identifier, and if `root`
    is not a checkout of the project.
    """
    folder, known = _FOLDERS[kind]
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot name a {kind}: use lower-case letters, digits and _, a letter first")
    if kind == "method" and (reason := refused_row(name)):
        raise UserError(f"'{name}' {reason}")
    paths = root / folder.relative_to(ROOT) / f"{name}.py", root / "tests" / f"test_{name}.py"
    for path in paths:
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} does not exist: `iapo-bench new` needs a checkout of the project")
    templates = Environment(
        loader=PackageLoader("iapo_bench.new"), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    values = {"name": name, "class_name": name.title().replace("_", "")}
    sources = (templates.get_template(template) for template in (f"{kind}.py.j2", f"test_{kind}.py.j2"))
    texts = {path: source.render(values) for path, source in zip(paths, sources, strict=True)}
    # A kill may have left only one of the two: it may be overwritten if it is unedited.
    whole = all(path.exists() for path in paths)
    for taken in (known().get(name), *paths):
        if taken is not None and taken.exists() and (whole or read_text(taken) != texts.get(taken)):
            raise UserError(f"{taken} exists: choose another name, or edit that file")
    with ExitStack() as both:
        for path, text in texts.items():
            both.enter_context(whole_file(path)).write_text(text)
    return paths
