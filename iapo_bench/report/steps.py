"""JSON that earlier steps wrote."""

from pathlib import Path
from typing import Any

from iapo_bench import files
from iapo_bench.errors import UserError


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The rows of a `train.jsonl`. Raises UserError when it is missing, empty or broken."""
    return files.read_jsonl(path, (), hint="train again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file. Raises UserError when it is missing or broken."""
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no fields: make it again")
    return content
