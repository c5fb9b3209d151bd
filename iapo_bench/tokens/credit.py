"""The page of a kept rollout: the credit of every token."""

from pathlib import Path
from typing import Any

from iapo_bench.errors import UserError
from iapo_bench.files import read_parquet, whole_file
from iapo_bench.tokens.heatmap import ScoredTranscript, credit_page
from iapo_bench.train.rollouts import ANSWER_ENTROPY
from iapo_bench.worlds.datasets.micro import VOCABULARY, token_roles
from iapo_bench.worlds.grading import Outcome

_COLUMNS = {
    **{"step": int, "method": str, "group": int, "sample": int, "problem_id": str, "prompt": str, "outcome": str},
    **{"truncated": bool, "reward": float, "token_ids": list[int], "tokens": list[str]},
    **dict.fromkeys(("advantages", "weights", "sampler_logp"), list[float]),
}


def make_credit_page(rollout: Path, out: Path, groups: int | None = None) -> None:
    """Write the page of the first `groups` groups of a rollout that training kept (all of them by default).

    Raises UserError for any other file.
    """
    hint = "name a file of a run's rollouts/, which train.keep_rollouts keeps"
    if rollout.is_dir():
        raise UserError(f"{rollout} is a directory: {hint}")
    frame = read_parquet(rollout, _COLUMNS, hint=hint)
    shown = frame if groups is None else frame[frame["group"] < groups]
    first = frame.iloc[0]
    facts = {
        "method": first["method"],
        "step": str(first["step"]),
        "shown": f"{shown['group'].nunique()} of {frame['group'].nunique()} groups",
    }
    page = credit_page(
        [_scored({str(name): value for name, value in row.items()}) for row in shown.to_dict("records")], facts
    )
    with whole_file(out) as partial:
        partial.write_text(page, encoding="utf-8")


def _scored(row: dict[str, Any]) -> ScoredTranscript:
    tokens = tuple(row["tokens"])
    words = [token.strip() for token in tokens]
    return ScoredTranscript(
        id=f"{row['problem_id']}, sample {row['sample']}",
        prompt=row["prompt"],
        tokens=tokens,
        token_ids=tuple(row["token_ids"]),
        roles=tuple(role.value for role in token_roles(words)) if set(words) <= set(VOCABULARY) else None,
        logp=tuple(row["sampler_logp"]),
        entropy=_numbers(row.get("token_entropy")),
        answer_entropy=_numbers(row.get(ANSWER_ENTROPY)),
        correct=row["outcome"] == Outcome.CORRECT.value,
        credit=tuple(row["advantages"] * row["weights"]),
        note=f"reward {row['reward']:+.3f}" + (", cut at the limit" if row["truncated"] else ""),
    )


def _numbers(values: Any) -> tuple[float, ...]:
    return () if values is None else tuple(values)
