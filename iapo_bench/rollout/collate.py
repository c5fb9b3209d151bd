"""From completions to a batch: the one place where padding, end of sequence and group order are decided."""

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.rollout import Completion


def collate(
    prompts: list[list[int]],
    completions: list[Completion],
    correct: list[bool],
    formatted: list[bool],
    *,
    group_size: int,
    max_tokens: int,
    pad_id: int,
    device: torch.device | str = "cpu",
) -> RolloutBatch:
    """The validated batch of `len(prompts)` groups; `completions`, `correct`, `formatted` hold one entry per row.

    Prompts are padded on the left, completions on the right. Rewards are +1 for a correct completion, else -1. Raises
    ValueError if the lengths do not match or `RolloutBatch.validate` fails.
    """
    rows = [prompt for prompt in prompts for _ in range(group_size)]
    if not len(rows) == len(completions) == len(correct) == len(formatted):
        raise ValueError(f"{len(completions)} completions for {len(prompts)} prompts, expected {group_size} each")
    P = max(map(len, rows))
    T = max(len(completion.token_ids) for completion in completions)
    prompt_ids_BP = torch.full((len(rows), P), pad_id)
    prompt_mask_BP = torch.zeros(len(rows), P, dtype=torch.bool)
    completion_ids_BT = torch.full((len(rows), T), pad_id)
    completion_mask_BT = torch.zeros(len(rows), T, dtype=torch.bool)
    sampler_logp_BT = torch.zeros(len(rows), T)
    for row, (prompt, completion) in enumerate(zip(rows, completions, strict=True)):
        prompt_ids_BP[row, P - len(prompt) :] = torch.tensor(prompt)
        prompt_mask_BP[row, P - len(prompt) :] = True
        length = len(completion.token_ids)
        completion_ids_BT[row, :length] = torch.tensor(completion.token_ids)
        completion_mask_BT[row, :length] = True
        sampler_logp_BT[row, :length] = torch.tensor(completion.logprobs)
    correct_B = torch.tensor(correct)
    return RolloutBatch(
        prompt_ids_BP=prompt_ids_BP.to(device),
        prompt_mask_BP=prompt_mask_BP.to(device),
        completion_ids_BT=completion_ids_BT.to(device),
        completion_mask_BT=completion_mask_BT.to(device),
        rewards_B=(correct_B.float() * 2 - 1).to(device),
        correct_B=correct_B.to(device),
        truncated_B=torch.tensor([completion.finish_reason == "length" for completion in completions]).to(device),
        formatted_B=torch.tensor(formatted).to(device),
        group_size=group_size,
        max_tokens=max_tokens,
        sampler_logp_BT=sampler_logp_BT.to(device),
    ).validate()
