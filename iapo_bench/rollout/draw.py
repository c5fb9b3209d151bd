"""Token sampling from given uniform numbers by inverting the cumulative distribution."""

import torch
from torch.nn.functional import pad

BLOCK = 1024  # tokens; a larger vocabulary is summed per block, and cumulatively only within the drawn block


def invert_cdf(logp_RV: torch.Tensor, uniform_R: torch.Tensor, top_p: float = 1.0) -> torch.Tensor:
    """The token at which each row's cumulative probability exceeds its uniform number in [0, 1), int64 (R,).

    Each draw uses one number, so it depends on its row alone. Sums are in float64: in float32 a large vocabulary loses
    its tail.
    """
    V = logp_RV.shape[1]
    if top_p < 1:
        probability_RV = _nucleus(logp_RV.double().exp(), top_p)
    else:
        # For a large vocabulary, writing and reading a float64 copy would take longer than everything else.
        probability_RV = (logp_RV.double() if V <= BLOCK else logp_RV).exp()
    if V > BLOCK:
        return _invert_by_blocks(probability_RV, uniform_R)
    cdf_RV = probability_RV.cumsum(dim=-1)
    target_R1 = uniform_R[:, None] * cdf_RV[:, -1:]
    return torch.searchsorted(cdf_RV, target_R1, right=True)[:, 0].clamp(max=V - 1)


def _nucleus(probability_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The probabilities of each row's smallest set of tokens that holds `top_p`; 0 for the others."""
    ordered, order = probability_RV.sort(dim=-1, descending=True)
    ordered.masked_fill_(ordered.cumsum(dim=-1) - ordered >= top_p, 0)
    return torch.zeros_like(probability_RV).scatter(1, order, ordered)


def _invert_by_blocks(probability_RV: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    """Find the block by the blocks' sums, then the token in it: one pass over the vocabulary."""
    V = probability_RV.shape[1]
    full = V - V % BLOCK
    sum_RN = probability_RV[:, :full].unflatten(1, (-1, BLOCK)).sum(dim=-1, dtype=torch.float64)
    if full < V:
        rest_R1 = probability_RV[:, full:].sum(dim=-1, keepdim=True, dtype=torch.float64)
        sum_RN = torch.cat([sum_RN, rest_R1], dim=1)
    cdf_RN = sum_RN.cumsum(dim=-1)
    target_R1 = uniform_R[:, None] * cdf_RN[:, -1:]
    block_R1 = _first_beyond(cdf_RN, target_R1)
    before_R1 = pad(cdf_RN, (1, 0)).gather(1, block_R1)

    # Past the end of the vocabulary the last token is repeated: no target lies beyond it.
    token_RK = (block_R1 * BLOCK + torch.arange(BLOCK, device=block_R1.device)).clamp(max=V - 1)
    inside_RK = probability_RV.gather(1, token_RK).double()
    place_R1 = _first_beyond(inside_RK.cumsum(dim=-1), target_R1 - before_R1)
    return (block_R1 * BLOCK + place_R1)[:, 0].clamp(max=V - 1)


def _first_beyond(cdf_RN: torch.Tensor, target_R1: torch.Tensor) -> torch.Tensor:
    """Index at which each row first exceeds its target, int64 (R, 1); never that of an entry that adds nothing."""
    last_R1 = cdf_RN[:, -1:]
    # Sums in another order round differently, so a target can lie a hair beyond the end.
    target_R1 = torch.minimum(target_R1, torch.nextafter(last_R1, torch.zeros_like(last_R1)))
    return torch.searchsorted(cdf_RN, target_R1, right=True).clamp(max=cdf_RN.shape[1] - 1)
