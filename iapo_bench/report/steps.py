"""JSON that earlier steps wrote."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from iapo_bench import files
from iapo_bench.errors import UserError, damaged


def read_steps(path: Path, required: Iterable[str] = (), optional: Iterable[str] = ()) -> pd.DataFrame:
    """The rows of a `train.jsonl`: the columns named are numbers; logs of an older version may lack the optional ones.

    Raises UserError when it is missing, empty or broken, or when a step is missing or repeated.
    """
    required = list(required)
    frame = pd.DataFrame(files.read_jsonl(path, required, hint="train again"))
    numbers = [*required, *(name for name in optional if name in frame)]
    with damaged(path, "train again"):
        if "step" in frame and frame["step"].tolist() != list(range(len(frame))):
            raise ValueError("its steps must be 0, 1, 2, ..., each once")
        return frame.astype(dict.fromkeys(numbers, float))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file. Raises UserError when it is missing or broken."""
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: make it again")
    return content
