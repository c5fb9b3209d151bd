"""JSON that earlier steps wrote."""

import json
from pathlib import Path
from typing import Any

from iapo_bench.errors import UserError


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The rows of a `train.jsonl`. Raises UserError when it is missing, empty or broken."""
    try:
        steps = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): train again") from None
    if not steps:
        raise UserError(f"{path} holds no steps: train again")
    return steps


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file. Raises UserError when it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
