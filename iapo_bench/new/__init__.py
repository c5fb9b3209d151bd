"""`iapo-bench new`: a commented method, dataset or reward to start from, and a test for it; both pass as they are."""

from typing import Literal, get_args

Kind = Literal["method", "dataset", "reward"]
KINDS: tuple[Kind, ...] = get_args(Kind)
