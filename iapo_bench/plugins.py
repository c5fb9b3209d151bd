"""Files found by name: a method, a dataset or a reward is one file, and its name is the file's."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from iapo_bench.errors import UserError, blamed

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
METHOD_DIRS = (ROOT / "methods", ROOT / "baselines")
DATASET_DIRS = (ROOT / "iapo_bench" / "worlds" / "datasets",)
OWN_DATASET = ROOT / "iapo_bench" / "worlds" / "own.py"  # the user's own problems, which world.file names
REWARD_DIRS = (ROOT / "rewards",)


def find_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Every file by name, without `.py`; the earlier folder wins. Files with a leading underscore are left out."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("_"):
                found.setdefault(path.stem, path)
    return found


def list_methods() -> dict[str, Path]:
    """Every method's file by name; `methods/` wins over `baselines/`."""
    return find_files(METHOD_DIRS)


def list_datasets() -> dict[str, Path]:
    """Every dataset's file by name."""
    return find_files(DATASET_DIRS)


def list_rewards() -> dict[str, Path]:
    """Every reward's file by name."""
    return find_files(REWARD_DIRS)


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """The function `name` of a file. Raises UserError when there is none."""
    function = getattr(_module(path), name, None)
    if not callable(function):
        raise UserError(f"{path} has no function `{name}`")
    return function


def load_class(path: Path, base: type[T], name: str) -> type[T]:
    """The subclass of `base` in a file whose class attribute `name` is `name`; one that the file imports (the parent of
    its own) counts where it has none of its own. Raises UserError when there is none, or more than one."""
    module = _module(path)
    held = {value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)}
    named = [value for value in held if getattr(value, "name", None) == name]
    found = [value for value in named if value.__module__ == module.__name__] or named
    if len(found) == 1:
        return found[0]
    kind = "class" if base is object else f"subclass of {base.__name__}"
    if found:
        several = ", ".join(sorted(value.__name__ for value in found))
        raise UserError(f"{path} has more than one {kind} with name = '{name}' ({several}): rename all but one")
    raise UserError(f"{path} has no {kind} with name = '{name}'")


def _module(path: Path) -> ModuleType:
    """Import a file of the package as its regular module; execute any other file anew, as the module FOLDER.NAME."""
    if path.is_relative_to(ROOT / "iapo_bench"):
        with blamed(path, path.stem, "import"):
            return importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up postponed annotations there
    with blamed(path, path.stem, "import"):
        spec.loader.exec_module(module)
    return module
