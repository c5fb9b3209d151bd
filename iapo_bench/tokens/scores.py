"""Every score of every token of a run's own completions, in the micro world, beside the token's role."""

from pathlib import Path

import numpy as np
import pandas as pd
from torch.nn.functional import pad

from iapo_bench.config.report import TokensJob
from iapo_bench.errors import UserError
from iapo_bench.files import whole_file
from iapo_bench.method import Signal
from iapo_bench.models.checkpoints import accelerator, load_model, load_tokenizer, torch_dtype
from iapo_bench.rollout import Completion
from iapo_bench.rollout.collate import collate
from iapo_bench.rollout.prompts import encode
from iapo_bench.signals.statistics import compute_signals
from iapo_bench.tokens.roles import micro_world, problems_asked, read_samples, reasoned, roles_of, select, to_words
from iapo_bench.worlds import POSTFIX
from iapo_bench.worlds.datasets.micro import build_tokenizer
from iapo_bench.worlds.grading import Outcome, make_grader

COMPLETIONS = 600


def score_tokens(
    job: TokensJob, *, model: Path, samples: Path, data: Path, out: Path, completions: int = COMPLETIONS
) -> None:
    """Score the tokens of some of a run's test samples with the run's own model; one row a token, to parquet `out`.

    Columns: problem_id, sample, position (from 0), token, role, `ranked` (see `iapo_bench.tokens.roles`), `information`
    (e[t] - e[t+1] by early exit), `statement_information` (its sum over the ranked words up to and with the next `;`,
    the same for all of them), `next_token_information` (the same with e[t] = H(o_t | q, o_<t), and 0 after the last
    token), `next_token_entropy`, `logp`, relative_position (0 to 1), correct. Entropies and log-probabilities are in
    nats, at the temperature of training, as methods see them.

    `completions` bounds the work: the first samples of every problem under the first sampling seed, as many of each as
    fit. 600 are two samples of each of 300 problems: intervals of an AUC are then 0.01 to 0.05 wide, after some seconds
    on one thread. More samples of a problem would narrow them little, as the bootstrap is over problems.

    Raises UserError for another world than micro, and for samples that are missing or not of this model's vocabulary.
    """
    world = micro_world(job)
    frame = select(read_samples(samples), completions)
    asked = problems_asked(frame, samples, data)
    tokenizer = load_tokenizer(model)
    if tokenizer.get_vocab() != build_tokenizer().get_vocab():
        raise UserError(f"{model} does not have the micro world's vocabulary: token roles are defined only there")
    words = [to_words(ids) for ids in frame["token_ids"]]
    postfix = tokenizer(POSTFIX, add_special_tokens=False).input_ids
    longest = max(map(len, words))
    prompts = encode(asked, world.dialogue(tokenizer), model, longest + len(postfix))
    with make_grader(world.grader) as grader:
        outcomes = grader.grade(frame["text"].tolist(), [problem.answer for problem in asked])
    correct = [outcome is Outcome.CORRECT for outcome in outcomes]
    device = accelerator()
    batch = compute_signals(
        load_model(model, dtype=torch_dtype(job.dtype)).to(device),
        collate(
            prompts,
            [Completion(tuple(ids), (0.0,) * len(ids), "stop") for ids in frame["token_ids"]],
            correct,
            [True] * len(frame),
            group_size=1,
            max_tokens=longest,
            pad_id=tokenizer.pad_token_id,
            device=device,
        ),
        frozenset({Signal.OLD_LOGP, Signal.TOKEN_ENTROPY, Signal.ANSWER_ENTROPY}),
        temperature=job.temperature,
        micro_batch_tokens=job.micro_batch_tokens,
        postfix_ids=postfix,
    )
    answer_BS, next_BT, logp_BT = batch.answer_entropy_BS, batch.token_entropy_BT, batch.old_logp_BT
    assert answer_BS is not None
    assert next_BT is not None
    assert logp_BT is not None
    mask_BT = batch.completion_mask_BT
    # Zero at padding: after a row's last token no next token is uncertain.
    after_BT = pad(next_BT * mask_BT, (0, 1))[:, 1:]
    lengths = [len(row) for row in words]
    position = np.concatenate([np.arange(length) for length in lengths])
    tokens = pd.DataFrame(
        {
            "problem_id": np.repeat(frame["problem_id"].to_numpy(), lengths),
            "sample": np.repeat(frame["sample"].to_numpy(), lengths),
            "position": position,
            "token": [word for row in words for word in row],
            "role": [role for row in words for role in roles_of(row)],
            "ranked": [flag for row in words for flag in reasoned(row)],
            "information": (answer_BS[:, :-1] - answer_BS[:, 1:])[mask_BT].cpu().numpy(),
            "next_token_information": (next_BT - after_BT)[mask_BT].cpu().numpy(),
            "next_token_entropy": next_BT[mask_BT].cpu().numpy(),
            "logp": logp_BT[mask_BT].cpu().numpy(),
            "relative_position": position / np.repeat(np.maximum(np.array(lengths) - 1, 1), lengths),
            "correct": np.repeat(correct, lengths),
        }
    )
    ends = tokens["token"] == ";"  # each belongs to the statement that it ends
    keys = [(tokens["position"] == 0).cumsum(), ends.cumsum() - ends.astype(int)]
    tokens["statement_information"] = tokens["information"].where(tokens["ranked"], 0.0).groupby(keys).transform("sum")
    with whole_file(out) as partial:
        tokens.to_parquet(partial, index=False)
