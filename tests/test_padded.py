"""The released code's readings of entropies, against that code's own way of getting them."""

import pytest
import torch
from builders import ragged_batch
from torch.nn.functional import pad
from transformers import DynamicCache

from iapo_bench.informativeness import answer_entropies
from iapo_bench.method import RELEASED_READING, Reading, Signal
from iapo_bench.signals.padded import padded_entropies, part_widths
from iapo_bench.signals.statistics import compute_signals

POSTFIX = [5, 6, 7]
SETTINGS = {"temperature": 0.7, "micro_batch_tokens": 60, "postfix_ids": POSTFIX}


@pytest.fixture
def sharp(model):
    """Weights large enough for distributions that differ from place to place."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=logits / 0.7).entropy()


@torch.no_grad()
def by_padded_caches(model, batch, chunk: int) -> torch.Tensor:
    """One row after another: cut the cache at the prefix and fill it up with zeros to the longest of the chunk, after
    which the postfix stands. (rows, T), where T is the batch's width."""
    P, T = batch.prompt_ids_BP.shape[1], batch.completion_ids_BT.shape[1]
    out = torch.zeros(len(batch.rewards_B), T)
    for row in range(len(out)):
        ids = torch.cat([batch.prompt_ids_BP[row], batch.completion_ids_BT[row]])[None]
        mask = torch.cat([batch.prompt_mask_BP[row], batch.completion_mask_BT[row]])[None].long()
        whole = model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
        for t in range(T):
            longest = P + min((t // chunk + 1) * chunk, T) - 1
            cache = DynamicCache(config=model.config)
            for index, layer in enumerate(whole.layers):
                filled = [pad(x[:, :, : P + t], (0, 0, 0, longest - P - t)) for x in (layer.keys, layer.values)]
                cache.update(*filled, index)
            seen = torch.ones(1, longest + len(POSTFIX), dtype=torch.long)
            seen[:, P + t : longest] = 0
            positions = longest + torch.arange(len(POSTFIX))[None]
            output = model(
                input_ids=torch.tensor([POSTFIX]), attention_mask=seen, position_ids=positions, past_key_values=cache
            )
            out[row, t] = entropy(output.logits[0, -1])
    return out


def test_the_answer_is_read_as_from_the_caches_of_a_chunk(sharp):
    """Left padding attended, a gap up to the chunk's end, and prefixes that run into the padding on the right."""
    batch = ragged_batch()
    reading = Reading(padding=True, postfix_chunk=4, left_padding=True)
    _, answers = padded_entropies(sharp, batch, reading, **SETTINGS)
    torch.testing.assert_close(answers[:, :-1], by_padded_caches(sharp, batch, 4), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_token_entropies_go_on_at_padding(sharp):
    batch = ragged_batch()
    tokens, _ = padded_entropies(sharp, batch, Reading(padding=True), **SETTINGS)
    ids = torch.cat([batch.prompt_ids_BP, batch.completion_ids_BT], dim=1)
    mask = torch.cat([batch.prompt_mask_BP, batch.completion_mask_BT], dim=1).long()
    logits = sharp(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(tokens, entropy(logits[:, batch.prompt_ids_BP.shape[1] - 1 : -1]), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_without_departures_it_is_the_definition(sharp, ranks):
    batch = ragged_batch()
    tokens, answers = padded_entropies(sharp, batch, Reading(ranks=ranks), **SETTINGS)
    exact = answer_entropies(
        sharp,
        batch.prompt_ids_BP,
        batch.prompt_mask_BP,
        batch.completion_ids_BT,
        batch.completion_mask_BT,
        torch.tensor(POSTFIX),
        temperature=0.7,
        implementation="naive",
    )
    torch.testing.assert_close(answers, exact, atol=2e-5, rtol=1e-5)
    needs = frozenset({Signal.TOKEN_ENTROPY})
    plain = compute_signals(sharp, batch, needs, **SETTINGS)
    torch.testing.assert_close(tokens, plain.token_entropy_BT, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("departure", [{"postfix_chunk": 4}, {"left_padding": True}, {"bfloat16": True}])
def test_each_departure_shows(sharp, departure):
    batch = ragged_batch()
    _, exact = padded_entropies(sharp, batch, Reading(), **SETTINGS)
    _, departed = padded_entropies(sharp, batch, Reading(**departure), **SETTINGS)
    assert (departed - exact).abs().max() > 5e-3
    if "bfloat16" in departure:
        torch.testing.assert_close(departed, exact, atol=0.1, rtol=0)
        assert torch.equal(departed, departed.bfloat16().float())
    elif "left_padding" in departure:
        longest = batch.prompt_mask_BP.all(dim=1)
        torch.testing.assert_close(departed[longest], exact[longest], atol=2e-5, rtol=1e-5)
    else:  # the last prefix of a chunk has no gap
        torch.testing.assert_close(departed[:, 3::4], exact[:, 3::4], atol=2e-5, rtol=1e-5)


def test_each_part_is_padded_by_itself(sharp):
    """A part read alone is a part read among others, and beyond its width there is nothing."""
    batch = ragged_batch()
    reading = Reading(padding=True, ranks=3, left_padding=True, postfix_chunk=4)
    tokens, answers = padded_entropies(sharp, batch, reading, **SETTINGS)
    for rows in torch.arange(6).view(3, 2):
        P, T = part_widths(batch, reading)[rows[0]].tolist()
        alone = padded_entropies(sharp, batch.rows(rows), Reading(**{**vars(reading), "ranks": 1}), **SETTINGS)
        torch.testing.assert_close(tokens[rows], alone[0])
        torch.testing.assert_close(answers[rows], alone[1])
        assert (int(batch.prompt_mask_BP[rows].sum(1).max()), int(batch.lengths_B[rows].max())) == (P, T)
        assert (answers[rows, T + 1 :] == 0).all()
        assert (tokens[rows, T:] == 0).all()


def test_a_share_of_the_rows_is_read_with_the_widths_of_all(sharp):
    batch = ragged_batch()
    widths = part_widths(batch, RELEASED_READING)
    tokens, answers = padded_entropies(sharp, batch, RELEASED_READING, **SETTINGS)
    rows = torch.tensor([2, 3])
    share = padded_entropies(sharp, batch.rows(rows), RELEASED_READING, widths_B2=widths[rows], **SETTINGS)
    torch.testing.assert_close(share[0], tokens[rows], atol=0.02, rtol=0)  # bfloat16 rounds elsewhere
    torch.testing.assert_close(share[1], answers[rows], atol=0.02, rtol=0)


def test_a_methods_reading_reaches_its_signals(sharp):
    batch = ragged_batch()
    needs = frozenset({Signal.ANSWER_ENTROPY, Signal.OLD_LOGP})
    reading = Reading(postfix_chunk=4)
    departed = compute_signals(sharp, batch, needs, entropies=reading, **SETTINGS)
    _, answers = padded_entropies(sharp, batch, reading, **SETTINGS)
    assert torch.equal(departed.answer_entropy_BS, answers)
    assert departed.token_entropy_BT is None
    assert torch.equal(departed.old_logp_BT, compute_signals(sharp, batch, needs, **SETTINGS).old_logp_BT)
