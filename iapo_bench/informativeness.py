"""How much each token tells about the answer: the early-exit estimator of IAPO (arXiv 2602.19049).

After every prefix of a completion the model is made to answer at once, by a postfix such as `</think><answer>`. The
entropy of the token that follows is e[t]; a token's conditional mutual information with the answer is the entropy that
it takes away, s[t] = e[t] - e[t + 1]. The distribution is that of the FIRST answer token: a proxy for the whole answer.

`naive` runs one full forward a prefix. `shared_kv` runs the completion once and then reads all postfixes of a chunk of
prefixes as one block of queries over the one cached sequence, under a mask that lets each postfix see its own prefix
and itself; K + 1 token-forwards a token, whatever the length.
"""

from typing import Literal

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from iapo_bench.errors import unknown
from iapo_bench.models import decoder_and_head

Implementation = Literal["naive", "shared_kv"]
ROW_BUDGET = 2**18  # elements of the attention mask of one call: a block of rows then stays in a processor's cache


@torch.no_grad()
def answer_entropies(
    model: PreTrainedModel,
    prompt_ids_BP: torch.Tensor,
    prompt_mask_BP: torch.Tensor,
    completion_ids_BT: torch.Tensor,
    completion_mask_BT: torch.Tensor,
    postfix_ids_K: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 64,
    implementation: Implementation = "shared_kv",
) -> torch.Tensor:
    """Entropy (nats) of the token after `prompt + completion[:t] + postfix`, t = 0..T: float32 (B, T+1).

    Entries beyond a row's length are 0. `chunk`: prefixes a pass. Prompts are left-padded, completions right-padded.
    """
    if implementation not in ("naive", "shared_kv"):
        raise unknown("implementation", implementation, ("naive", "shared_kv"))
    was_training = model.training
    model.eval()
    run = _naive if implementation == "naive" else _shared_kv
    lengths_B = completion_mask_BT.sum(dim=1)
    out_BS = torch.zeros(completion_ids_BT.shape[0], completion_ids_BT.shape[1] + 1, device=completion_ids_BT.device)
    order = torch.argsort(lengths_B, descending=True, stable=True)
    start = 0
    while start < len(order):
        # Rows of like length together, so that little of a block is padding.
        width = int(lengths_B[order[start]]) + int(prompt_mask_BP.sum(dim=1).max())
        queries = min(chunk, width + 1) * len(postfix_ids_K)
        rows = order[start : start + max(1, ROW_BUDGET // (queries * (queries + width)))]
        sequences = [
            torch.cat([prompt_ids_BP[row][prompt_mask_BP[row]], completion_ids_BT[row][completion_mask_BT[row]]])
            for row in rows.tolist()
        ]
        ids_BL = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        prompt_B = prompt_mask_BP[rows].sum(dim=1)
        entropy_BS = run(model, ids_BL, prompt_B, lengths_B[rows], postfix_ids_K, temperature, chunk)
        out_BS[rows, : entropy_BS.shape[1]] = entropy_BS
        start += len(rows)
    model.train(was_training)
    steps = torch.arange(out_BS.shape[1], device=out_BS.device)
    return out_BS.masked_fill(steps > lengths_B[:, None], 0.0)


def _naive(
    model: PreTrainedModel,
    ids_BL: torch.Tensor,
    prompt_B: torch.Tensor,
    lengths_B: torch.Tensor,
    postfix_K: torch.Tensor,
    temperature: float,
    chunk: int,
) -> torch.Tensor:
    columns = []
    decoder, head = decoder_and_head(model)
    rows = torch.arange(len(ids_BL), device=ids_BL.device)
    for t in range(int(lengths_B.max()) + 1):
        ends = (prompt_B + lengths_B.clamp(max=t)).tolist()
        sequences = [torch.cat([ids_BL[row, :end], postfix_K]) for row, end in enumerate(ends)]
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        last = torch.tensor(ends, device=ids.device) + len(postfix_K) - 1
        hidden_BD = decoder(input_ids=ids, use_cache=False).last_hidden_state[rows, last]
        columns.append(_entropy(head(hidden_BD), temperature))
    return torch.stack(columns, dim=1)


def _shared_kv(
    model: PreTrainedModel,
    ids_BL: torch.Tensor,
    prompt_B: torch.Tensor,
    lengths_B: torch.Tensor,
    postfix_K: torch.Tensor,
    temperature: float,
    chunk: int,
) -> torch.Tensor:
    decoder, head = decoder_and_head(model)
    B, L = ids_BL.shape
    K = len(postfix_K)
    whole = DynamicCache(config=decoder.config)
    decoder(input_ids=ids_BL, past_key_values=whole, use_cache=True)
    cache = Cache(layers=[_ReadOnlyLayer(layer) for layer in whole.layers])
    cached = torch.arange(L, device=ids_BL.device)
    parts = []
    for prefixes_C in torch.arange(int(lengths_B.max()) + 1, device=ids_BL.device).split(chunk):
        C = len(prefixes_C)
        ends_BC = prompt_B[:, None] + torch.minimum(prefixes_C, lengths_B[:, None])
        sees_prefix = (cached < ends_BC[:, :, None])[:, :, None].expand(B, C, K, L)
        query = torch.arange(C * K, device=ids_BL.device)
        sees_itself = (query[:, None] // K == query // K) & (query[:, None] >= query)
        mask = torch.cat([sees_prefix.reshape(B, C * K, L), sees_itself.expand(B, -1, -1)], dim=2)
        positions = ends_BC[:, :, None] + torch.arange(K, device=ids_BL.device)
        hidden = decoder(
            input_ids=postfix_K.repeat(C).expand(B, -1),
            attention_mask=mask[:, None],
            position_ids=positions.reshape(B, C * K),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        parts.append(_entropy(head(hidden[:, K - 1 :: K]), temperature))
    return torch.cat(parts, dim=1)


def _entropy(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(logp.exp() * logp).sum(dim=-1)


class _ReadOnlyLayer(DynamicLayer):
    """A cached layer that shows new keys and values beside its own and forgets them."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = layer.keys, layer.values, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        return torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)
