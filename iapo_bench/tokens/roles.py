"""Roles against scores of tokens in the micro world, where the role of every token is known.

`iapo_bench.tokens.scores` has a run's own model score the tokens of its own completions. Here, `auc_table` asks how
well each score tells needed tokens from redundant ones (fillers, checks, restatements); `role_table` which roles a
method removed.

Scores are compared by rank, so their scales do not matter: the AUC is the probability that a needed token scores higher
than a redundant one OF THE SAME COMPLETION, ties counting half. Methods normalise a score within a completion, so a
difference between two completions gives no token credit and must not count here either. Completions that have both
kinds of token are averaged; intervals are 95%, from a bootstrap over problems.

Only reasoning tokens are ranked: not the opening `<think>`, and nothing from the first closing or answer tag on. Those
tokens are trivially needed: no method can do without them, and the early exit supplies them itself. They would flatter
a score.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from iapo_bench.batch import SIGNAL_NOISE
from iapo_bench.config.report import BASE, Labels, RolesJob, TokensJob
from iapo_bench.errors import UserError, damaged
from iapo_bench.files import read_parquet
from iapo_bench.report.document import Block, Table, ranged, write_document
from iapo_bench.report.rows import opening, run_names, split_run
from iapo_bench.report.style import save_figure
from iapo_bench.seeds import numpy_stream
from iapo_bench.tokens.roles_figure import informativeness_roles
from iapo_bench.worlds import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, Problem, read_problems
from iapo_bench.worlds.datasets.micro import EOS, PAD, UNKNOWN, VOCABULARY, MicroWorld, Role, token_roles
from iapo_bench.worlds.load import load_world

ROLES = tuple(role.value for role in Role)
# Scores by the column that holds them; higher should mean needed. `position`: later is higher.
SCORES = {
    "early_exit": "information",
    "early_exit_statement": "statement_information",
    "next_token": "next_token_information",
    "next_token_entropy": "next_token_entropy",
    "position": "position",
}
AGAINST = {"redundant": ROLES[1:], **{role: (role,) for role in ROLES[1:]}}

_COMPLETION = ["problem_id", "sample"]
_KEYS = {"problem_id": str, "sample": int}
_SAMPLE_COLUMNS = {**_KEYS, "seed": int, "token_ids": list[int], "text": str}
_TOKEN_COLUMNS = {**_KEYS, "position": int, "role": str, "ranked": bool, **dict.fromkeys(SCORES.values(), float)}
_SPECIAL = (PAD, EOS, UNKNOWN)


def make_role_tables(
    job: RolesJob, runs: Mapping[str, Path], *, informativeness: Path, roles: Path, figure: Path
) -> None:
    """Write both tables and their figure. A run is named `base`, `METHOD` or `METHOD/SEED`.

    `runs` are directories with `test/token_roles.parquet` and `test/samples.parquet`.
    """
    micro_world(job)
    counts = {name: count_roles(read_samples(folder / "test" / "samples.parquet")) for name, folder in runs.items()}
    aucs = []
    for name, folder in runs.items():
        tokens = read_parquet(folder / "test" / "token_roles.parquet", _TOKEN_COLUMNS, "score its tokens first")
        aucs.append(_labels(job.labels, name) | {"scored_by": "own model"} | auc_table(tokens).to_dict("list"))
    removed = [
        _labels(job.labels, name) | role_table(count, None if name == BASE else counts.get(BASE)).to_dict("list")
        for name, count in counts.items()
    ]
    frames = [pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True) for parts in (aucs, removed)]
    drawing = informativeness_roles(*frames, tier=job.labels.tier)
    write_document(informativeness, frames[0], auc_blocks(job.labels, frames[0]))
    write_document(roles, frames[1], role_blocks(job.labels, frames[1]))
    save_figure(drawing, figure)


def auc_blocks(labels: Labels, aucs: pd.DataFrame) -> list[Block]:
    """The AUCs for readers: a part for each kind of token that needed ones are ranked against."""
    aucs = aucs.assign(run=run_names(aucs))
    blocks: list[Block] = [*opening(labels, "which scores know a needed token")]
    for against, some in aucs.groupby("needed_against", sort=False):
        columns = {"run": list(dict.fromkeys(some["run"]))}
        for score, found in some.groupby("score", sort=False):
            columns[str(score).replace("_", " ")] = _intervals(found, "auc", ".2f")
        blocks.append(Table(columns, f"AUC of needed against {against} tokens, with its 95% interval; a coin has .5."))
    return blocks


def role_blocks(labels: Labels, roles: pd.DataFrame) -> list[Block]:
    """Tokens a completion by role for readers, and what changed against the base."""
    roles = roles.assign(run=run_names(roles))
    columns = {"run": list(dict.fromkeys(roles["run"]))}
    changes = dict(columns)
    for role, found in roles.groupby("role", sort=False):
        columns[str(role)] = _intervals(found, "tokens", ".1f")
        changes[str(role)] = _intervals(found.assign(**found.filter(like="change") * 100), "change", "+.0f")
    return [
        *opening(labels, "which roles of tokens each method removed"),
        Table(columns, "Tokens a completion by role, with 95% intervals."),
        Table(changes, "Change against the base in percent, paired by problem, with 95% intervals."),
    ]


def _intervals(frame: pd.DataFrame, measure: str, form: str) -> list[str]:
    return [ranged(*ends, form=form) for ends in frame[[measure, f"{measure}_lo", f"{measure}_hi"]].to_numpy()]


def auc_table(tokens: pd.DataFrame) -> pd.DataFrame:
    """AUC of every score against every kind of redundant token, from rows of `score_tokens`; one row each.

    A cell is empty where no completion has both kinds. n_needed, n_other, completions and problems are the numbers
    ranked.
    """
    known = sorted(set(tokens["problem_id"]))
    rows = []
    for score, column in SCORES.items():
        for against, others in AGAINST.items():
            aucs = completion_aucs(tokens, column, others)
            by_problem = aucs.groupby("problem_id")["auc"].agg(["sum", "size"]).reindex(known, fill_value=0)
            mean, draws_B = _mean(by_problem["sum"].to_numpy(float), by_problem["size"].to_numpy(float))
            lo, hi = _interval(draws_B)
            rows.append(
                {"score": score, "needed_against": against, "auc": mean, "auc_lo": lo, "auc_hi": hi}
                | {"n_needed": int(aucs["n_needed"].sum()), "n_other": int(aucs["n_other"].sum())}
                | {"completions": len(aucs), "problems": int((by_problem["size"] > 0).sum())}
            )
    return pd.DataFrame(rows)


def completion_aucs(tokens: pd.DataFrame, column: str, others: Iterable[str]) -> pd.DataFrame:
    """For each completion, the probability that a needed token has a higher `column` than one of the roles `others`.

    Columns problem_id, sample, auc, n_needed, n_other; completions without both kinds are left out. Values that differ
    by less than the rounding of a forward pass are ties.
    """
    needed = Role.NEEDED.value
    kept = tokens[tokens["ranked"] & tokens["role"].isin([needed, *others])]
    digits = -round(np.log10(SIGNAL_NOISE["float32"].nats))
    keys = [kept[key] for key in _COMPLETION]
    ranks = kept[column].astype(float).round(digits).groupby(keys).rank()
    is_needed = kept["role"] == needed
    parts = {"ranks": ranks.where(is_needed, 0.0), "n_needed": is_needed.astype(int), "n_other": 1 - is_needed}
    sums = pd.DataFrame(parts).groupby(keys).sum()
    sums = sums[(sums["n_needed"] > 0) & (sums["n_other"] > 0)]
    n, m = sums["n_needed"], sums["n_other"]
    return sums.assign(auc=(sums["ranks"] - n * (n + 1) / 2) / (n * m)).drop(columns="ranks").reset_index()


def count_roles(samples: pd.DataFrame) -> pd.DataFrame:
    """Tokens by role of every completion: columns problem_id and the roles, one row a completion."""
    roles = [roles_of(to_words(ids)) for ids in samples["token_ids"]]
    counts = pd.DataFrame([{role: row.count(role) for role in ROLES} for row in roles], index=samples.index)
    return pd.concat([samples["problem_id"], counts], axis=1)


def role_table(counts: pd.DataFrame, base: pd.DataFrame | None) -> pd.DataFrame:
    """Mean tokens a completion by role, from `count_roles`, and the relative change against the base; one row a role.

    `change` is -0.25 where a quarter of the base's tokens of that role is gone; its interval pairs the problems. Empty
    without a base or where the base has no such token. The last row, `all`, is the length. Raises UserError when the
    base answered other problems.
    """
    if base is not None and set(base["problem_id"]) != set(counts["problem_id"]):
        raise UserError("the base and another run have samples of different problems: sample the same problems")
    rows = []
    for role in (*ROLES, "all"):
        mean, draws_B = _mean(*_by_problem(counts, role))
        change, change_B = float("nan"), np.full_like(draws_B, np.nan)
        if base is not None:
            before, before_B = _mean(*_by_problem(base, role))
            if before > 0:
                with np.errstate(divide="ignore", invalid="ignore"):
                    change, change_B = mean / before - 1, draws_B / before_B - 1
        (lo, hi), (change_lo, change_hi) = _interval(draws_B), _interval(change_B)
        rows.append(
            {"role": role, "tokens": mean, "tokens_lo": lo, "tokens_hi": hi}
            | {"change": change, "change_lo": change_lo, "change_hi": change_hi}
            | {"completions": len(counts), "problems": counts["problem_id"].nunique()}
        )
    return pd.DataFrame(rows)


def roles_of(words: list[str]) -> list[str]:
    """The role of every word of a completion; the end of sequence is needed wherever it stands."""
    roles = [role.value for role in token_roles(words)]
    return [Role.NEEDED.value if word == EOS else role for word, role in zip(words, roles, strict=True)]


def reasoned(words: list[str]) -> list[bool]:
    """Which words of a completion are ranked: all before the first closing or answer tag, but for `<think>`."""
    ends = (THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE, EOS)
    end = next((i for i, word in enumerate(words) if word in ends), len(words))
    return [i < end and word not in (THINK_OPEN, PAD, UNKNOWN) for i, word in enumerate(words)]


def to_words(token_ids: Iterable[int]) -> list[str]:
    """The words behind token ids of the micro world's vocabulary, special ones included."""
    return [VOCABULARY[i] for i in token_ids]


def select(samples: pd.DataFrame, completions: int) -> pd.DataFrame:
    """At most `completions` rows of the first sampling seed: the first samples of every problem, or of those that fit.

    Samples of a problem are exchangeable and their seed is fixed, so the first are as good a choice as any.
    """
    frame = samples[samples["seed"] == samples["seed"].iloc[0]]
    problems = frame["problem_id"].drop_duplicates().iloc[:completions]
    each = completions // len(problems)
    frame = frame[frame["problem_id"].isin(set(problems))].sort_values("sample", kind="stable")
    return frame.groupby("problem_id").head(each).sort_index()


def read_samples(path: Path) -> pd.DataFrame:
    """Samples of the micro world. Raises UserError when the file is missing, broken, or holds another vocabulary's."""
    frame = read_parquet(path, _SAMPLE_COLUMNS, "sample first")
    with damaged(path, "sample again"):
        frame["token_ids"] = [list(map(int, ids)) for ids in frame["token_ids"]]
    for problem, ids, text in zip(frame["problem_id"], frame["token_ids"], frame["text"], strict=True):
        if not ids:
            raise UserError(f"{path}: a completion of problem '{problem}' has no tokens: sample again")
        if min(ids) < 0 or max(ids) >= len(VOCABULARY):
            raise UserError(f"{path}: token {max(ids)} is not in the micro world's vocabulary: sample a micro model")
        if [word for word in to_words(ids) if word not in _SPECIAL] != text.split():
            raise UserError(f"{path}: tokens and text of problem '{problem}' disagree: sample again with a micro model")
    return frame


def problems_asked(frame: pd.DataFrame, samples: Path, data: Path) -> list[Problem]:
    """The test problem of each row of `samples`. Raises UserError for one that `data` lacks."""
    problems = {problem.id: problem for problem in read_problems(data / "test.jsonl")}
    if missing := sorted(set(frame["problem_id"]) - set(problems)):
        raise UserError(f"{samples}: problem '{missing[0]}' is not in {data}: sample again after preparing data")
    return [problems[i] for i in frame["problem_id"]]


def micro_world(job: RolesJob | TokensJob) -> MicroWorld:
    """The tier's world. Raises UserError unless it is the micro world."""
    if job.world.name != "micro":
        raise UserError(f"token roles are defined only in the micro world, not in '{job.world.name}'")
    world = load_world(job.world, job.world_seed)
    assert isinstance(world, MicroWorld)
    return world


def _labels(labels: Labels, name: str) -> dict[str, str]:
    method, seed = split_run(name)
    return {"model": labels.model, "dataset": labels.dataset, "method": method, "train_seed": seed}


def _by_problem(counts: pd.DataFrame, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a role and completions, float (P,) each, problems in the order of their ids."""
    tokens = counts[list(ROLES)].sum(axis=1) if role == "all" else counts[role]
    groups = tokens.groupby(counts["problem_id"], sort=True)
    return groups.sum().to_numpy(float), groups.size().to_numpy(float)


def _mean(sums_P: np.ndarray, counts_P: np.ndarray, draws: int = 1000) -> tuple[float, np.ndarray]:
    """A mean over completions and its bootstrap draws (B,) over problems, the same problems for the same P."""
    P = len(sums_P)
    weights_BP = numpy_stream(0, "bootstrap").multinomial(P, np.full(P, 1 / P), size=draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(sums_P.sum(), counts_P.sum())), (weights_BP @ sums_P) / (weights_BP @ counts_P)


def _interval(draws_B: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of the finite draws."""
    finite = draws_B[np.isfinite(draws_B)]
    if not len(finite):
        return float("nan"), float("nan")
    lo, hi = np.quantile(finite, (0.025, 0.975))
    return float(lo), float(hi)
