"""Writes what `iapo-bench new` starts you with."""

import keyword
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from iapo_bench.errors import UserError
from iapo_bench.files import whole_file
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

    Raises UserError, and writes nothing, for a name that is no Python name in lower case or is taken, and where `root`
    is no checkout of the project.
    """
    folder, known = _FOLDERS[kind]
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot name a {kind}: use lower-case letters, digits and _, a letter first")
    paths = root / folder.relative_to(ROOT) / f"{name}.py", root / "tests" / f"test_{name}.py"
    for taken in (known().get(name), *paths):
        if taken is not None and taken.exists():
            raise UserError(f"{taken} exists: choose another name, or edit that file")
    for path in paths:
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} does not exist: `iapo-bench new` needs a checkout of the project")
    templates = Environment(
        loader=PackageLoader("iapo_bench.new"), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    with ExitStack() as both:
        for path, template in zip(paths, (f"{kind}.py.j2", f"test_{kind}.py.j2"), strict=True):
            text = templates.get_template(template).render(name=name, class_name=name.title().replace("_", ""))
            both.enter_context(whole_file(path)).write_text(text)
    return paths
