"""The rows of a run, as `train.jsonl` holds them, and what they say of steps that taught nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from iapo_bench.config.train import TrainConfig
from iapo_bench.errors import UserError, damaged
from iapo_bench.files import to_json, whole_file

# Opens the logs: takes the rows of the checkpoint, gives a context that yields a function to log each further row.
Tracking = Callable[[list[dict[str, Any]]], AbstractContextManager[Callable[[dict[str, Any]], None]]]


def require_log(path: Path) -> None:
    """Raise UserError if `path` holds training problems, whose file has the same name."""
    with damaged(path, "choose another output"):
        if path.is_file() and path.read_bytes().startswith(b'{"id"'):
            raise UserError(f"{path} holds problems, which the log would replace: choose another output")


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write these rows in place of what the file holds, flushed to the disk."""
    with whole_file(path) as partial:
        partial.write_text("".join(map(_line, rows)))


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row in one call, so that a concurrent reader never sees half of it. Raises OSError on a full disk, where
    an unbuffered file would take half of the row and say nothing."""
    with path.open("ab") as file:
        file.write(_line(row).encode())


def _line(row: dict[str, Any]) -> str:
    return to_json(row) + "\n"


def complaints(row: dict[str, Any], config: TrainConfig) -> list[str]:
    """Messages about what kept a step from teaching anything."""
    found = []
    if not row["groups"]:
        found.append(f"no group was accepted of {row['completions']} completions, {row['correct']:.0%} of them correct")
    elif row["zero_variance_groups"] == 1:
        found.append("the rewards of every group are all equal")
    elif not row["updates_moved"]:
        found.append(f"no update moved the weights (gradient norm {row['grad_norm']:.3g})")
    if row["truncated"] == 1:
        found.append(f"every completion was cut at max_tokens = {config.max_tokens}")
    if row["length"] == 1:
        found.append("every completion is a single token")
    return found


def shortcomings(rows: list[dict[str, Any]], config: TrainConfig) -> list[str]:
    """Messages about what a whole run did not do: updates that moved nothing, and rollouts of steps that never came."""
    found = []
    moved, updates = sum(row["updates_moved"] for row in rows), sum(row["updates"] for row in rows)
    if moved < updates:
        found.append(f"{moved} of {updates} updates moved the weights")
    late = [step for step in config.keep_rollouts if step >= len(rows)]
    if late:
        found.append(f"no rollouts of step {late[0]}: the last was {len(rows) - 1}")
    return found
