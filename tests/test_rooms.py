"""The tree shows the architecture: a room imports only from rooms above it."""

from pathlib import Path

import pytest

from iapo_bench.machine.code import closure

PACKAGE = Path(__file__).parent.parent / "iapo_bench"

# In dependency order. The first line is the ground, the last the top.
ROOMS = [
    {"errors", "files", "progress", "seeds", "batch", "credit", "plugins", "method", "config"},
    {"machine"},
    {"worlds"},
    {"models"},
    {"rollout"},
    {"signals", "informativeness"},
    {"train"},
    {"evaluate"},
    {"report"},
    {"tokens"},
    {"plan"},
    {"bench", "new", "cli", "doctor", "watch", "try_out", "staleness", "workflow", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(path for path in PACKAGE.glob("**/*.py") if path.parent != PACKAGE or path.stem != "__init__")


def test_every_module_has_a_room():
    assert {room(path) for path in MODULES} <= LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above_it(path):
    imported = {file for file in closure(path) if file.is_relative_to(PACKAGE) and file != PACKAGE / "__init__.py"}
    below = {str(file.relative_to(PACKAGE)) for file in imported if LEVEL[room(file)] > LEVEL[room(path)]}
    assert not below
