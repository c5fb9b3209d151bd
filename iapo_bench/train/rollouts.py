"""Rollouts in files: of selected steps as parquet (completions, the method's credit, its signals), and the batch that
broke a step."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from iapo_bench.batch import RolloutBatch
from iapo_bench.credit import Credit
from iapo_bench.files import whole_file
from iapo_bench.models.token_texts import token_texts
from iapo_bench.worlds.grading import Outcome

# Per-token signals (nats) that a method may read: column of the table to field of the batch.
SIGNALS = {
    "sampler_logp": "sampler_logp_BT",
    "old_logp": "old_logp_BT",
    "ref_logp": "ref_logp_BT",
    "token_entropy": "token_entropy_BT",
}
ANSWER_ENTROPY = "answer_entropy"  # at every prefix: one more value than tokens
_FILE = re.compile(r"step(\d+)\.parquet")


def rollout_table(
    batch: RolloutBatch,
    credit: Credit,
    tokenizer: PreTrainedTokenizerBase,
    *,
    problems: Sequence[str],
    outcomes: Sequence[Outcome],
) -> pd.DataFrame:
    """One row per completion, in the order of `batch`, which is the one after `shape_rewards`.

    Columns: group, sample, problem_id, prompt, outcome, formatted, truncated, reward (as shaped), and lists with one
    value per token: token_ids, tokens (text), advantages, weights, and those of `SIGNALS` that were computed;
    `answer_entropy` has one value more, for the empty prefix. `problems`: ids, one per group. `outcomes`: one per row.
    """
    G = batch.group_size
    mask_BT = batch.completion_mask_BT.cpu()
    ids = [row[mask].tolist() for row, mask in zip(batch.completion_ids_BT.cpu(), mask_BT, strict=True)]
    asked = [
        tokenizer.decode(row[mask].tolist(), clean_up_tokenization_spaces=False)
        for row, mask in zip(batch.prompt_ids_BP[::G].cpu(), batch.prompt_mask_BP[::G].cpu(), strict=True)
    ]
    columns = {
        "group": np.repeat(np.arange(len(problems)), G),
        "sample": np.tile(np.arange(G), len(problems)),
        "problem_id": np.repeat(np.array(problems, dtype=object), G),
        "prompt": np.repeat(np.array(asked, dtype=object), G),
        "outcome": [outcome.value for outcome in outcomes],
        "formatted": batch.formatted_B.tolist(),
        "truncated": batch.truncated_B.tolist(),
        "reward": batch.rewards_B.tolist(),
        "token_ids": ids,
        "tokens": [token_texts(tokenizer, row) for row in ids],
    }
    per_token = {"advantages": credit.advantages_BT, "weights": credit.weights_BT}
    per_token |= {name: getattr(batch, field) for name, field in SIGNALS.items()}
    lengths = batch.lengths_B.tolist()
    columns |= {name: _ragged(values, lengths) for name, values in per_token.items() if values is not None}
    if batch.answer_entropy_BS is not None:
        columns[ANSWER_ENTROPY] = _ragged(batch.answer_entropy_BS, [length + 1 for length in lengths])
    return pd.DataFrame(columns)


def _ragged(values: torch.Tensor, lengths: Sequence[int]) -> list[list[float]]:
    return [row[:length].tolist() for row, length in zip(values.cpu(), lengths, strict=True)]


def write_rollout(folder: Path, step: int, table: pd.DataFrame, *, method: str) -> None:
    """Write the table of a step to `folder`, with columns for step and method, whole or not at all."""
    with whole_file(folder / f"step{step}.parquet") as partial:
        table.assign(step=step, method=method).to_parquet(partial, index=False)


def write_broken(
    folder: Path,
    step: int,
    batch: RolloutBatch,
    credit: Credit | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    method: str,
) -> Path:
    """Write the batch that broke a step, as computed so far, for `torch.load`; return the file."""
    ids = [row[mask].tolist() for row, mask in zip(batch.completion_ids_BT, batch.completion_mask_BT, strict=True)]
    held = {**vars(batch), **(vars(credit) if credit else {})}
    kept: dict[str, Any] = {name: value for name, value in held.items() if isinstance(value, torch.Tensor | int)}
    with whole_file(path := folder / f"step{step}.pt") as partial:
        torch.save({**kept, "method": method, "texts": tokenizer.batch_decode(ids)}, partial)
    return path


def drop_rollouts(folder: Path, after: int) -> None:
    """Remove the files of steps beyond `after`, left by an earlier run or by steps that will be repeated."""
    for path in folder.glob("step*.parquet"):
        if (found := _FILE.fullmatch(path.name)) and int(found[1]) > after:
            path.unlink()
