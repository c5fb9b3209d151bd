"""Effect of the protocol: the same completions, measured as in the released code and as in this suite.

The released code counts a problem as solved if any of the first k completions is right, keeps 15 problems, cuts prompt
and completion at 768 tokens together, compares strings, and chooses checkpoints and IAPO's weights by Pass@32/Length@32
on the problems that it reports. Each part replaces ours alone, then all parts do together.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from iapo_bench.config.report import ProtocolJob
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Samples, first_k, pass_at_k, read_grades
from iapo_bench.files import read_parquet
from iapo_bench.models.checkpoints import load_tokenizer
from iapo_bench.report.document import Block, Table, write_document
from iapo_bench.report.rows import split_run
from iapo_bench.seeds import numpy_stream
from iapo_bench.worlds import read_problems, split_file
from iapo_bench.worlds.dialogue import Dialogue, completion_texts
from iapo_bench.worlds.exact import judge_exactly
from iapo_bench.worlds.grading import Grader, Outcome, make_grader
from iapo_bench.worlds.load import load_world

PROBLEMS = 15
CONTEXT = 768
DRAWS = 10_000
OURS, EVERYTHING = "ours", "the released protocol"
# The parts of the released protocol, in the order in which a completion meets them.
PARTS = ("first-k", "15 problems", "768 tokens", "exact strings", "chosen on the reported problems")


@dataclass(frozen=True)
class Counted:
    """One run's completions, (S, P, N): sampling seeds, problems, samples, as each protocol judges and counts them.

    `correct` is keyed by (cut, exact) and `tokens` by cut: whether prompt and completion are cut at the released limit,
    and whether answers are compared as strings. Problems are in the order of their file.
    """

    correct: Mapping[tuple[bool, bool], np.ndarray]
    tokens: Mapping[bool, np.ndarray]

    def cells(self, parts: Sequence[str], k: int, problems: np.ndarray | None = None) -> tuple[float, float, float]:
        """Pass@k, Length@k and their quotient under these parts of the released protocol, over `problems` (indices)."""
        cut, exact = "768 tokens" in parts, "exact strings" in parts
        correct_SPN, tokens_SPN = self.correct[cut, exact], self.tokens[cut]
        if problems is None:
            problems = np.arange(correct_SPN.shape[1])[: PROBLEMS if "15 problems" in parts else None]
        correct_SPN, tokens_SPN = correct_SPN[:, problems], tokens_SPN[:, problems]
        if "first-k" in parts:
            solved, tokens = first_k(correct_SPN, k).mean(), tokens_SPN[..., :k].mean()
        else:
            n = correct_SPN.shape[-1]
            solved, tokens = pass_at_k(n, correct_SPN.sum(axis=-1), k).mean(), tokens_SPN.mean()
        return float(solved), float(tokens), float(solved / tokens)


def arrange(frame: pd.DataFrame, problems: Sequence[str], column: str) -> np.ndarray:
    """A column of grades as an array (S, P, N): sampling seeds, problems, samples."""
    seeds = sorted(frame["seed"].unique())
    order = {problem: i for i, problem in enumerate(problems)}
    frame = frame.assign(place=frame["problem_id"].map(order)).sort_values(["seed", "place", "sample"])
    return frame[column].to_numpy().reshape(len(seeds), len(problems), -1)


def make_protocol(job: ProtocolJob, runs: Mapping[str, Path], *, data: Path, out: Path) -> None:
    """Write the comparison of protocols (`out`, CSV; .md, .tex and .html beside it).

    `runs`: directories with `model`, `test/samples.parquet` and `test/grades.parquet`, by METHOD/CANDIDATE or "base".
    """
    world = load_world(job.world, job.world_seed)
    problems = read_problems(split_file(data, "test"))
    candidates: dict[str, list[Counted]] = {}
    with make_grader(world.grader) as grader:
        for name, folder in runs.items():
            dialogue = world.dialogue(load_tokenizer(folder / "model"), job.prompt)
            prompt_tokens = {problem.id: len(dialogue.encode(problem.question)) for problem in problems}
            golds = {problem.id: problem.answer for problem in problems}
            frame = with_protocols(*read_run(folder), golds, prompt_tokens, dialogue, grader)
            candidates.setdefault(split_run(name)[0], []).append(count(frame, [problem.id for problem in problems]))
    cells, rankings = measure(candidates, job.k), ranking_chances(candidates, job.k)
    write_document(out, pd.concat([cells, rankings], ignore_index=True), protocol_blocks(cells, rankings))


def read_run(folder: Path) -> tuple[pd.DataFrame, list[Sequence[int]]]:
    """The grades of a run on the test split, with texts, and the token ids of each row. Raises UserError where the
    samples are not those that were graded."""
    path = folder / "test" / "grades.parquet"
    Samples.of({0: read_grades(path)})  # reports what is wrong with a file
    keys = {"problem_id": str, "sample": int, "seed": int}
    grades = read_parquet(path, {**keys, "text": str}, "grade again")
    columns = {**keys, "token_ids": list[int]}
    samples = read_parquet(folder / "test" / "samples.parquet", columns, "sample first")[[*columns]]
    joined = grades[[*keys]].merge(samples, on=[*keys], how="left")
    if len(joined) != len(grades) or joined["token_ids"].isna().any():
        raise UserError(f"{folder / 'test'}: grades and samples differ: grade again")
    return grades, joined["token_ids"].tolist()


def with_protocols(
    grades: pd.DataFrame,
    token_ids: Sequence[Sequence[int]],
    golds: Mapping[str, str],
    prompt_tokens: Mapping[str, int],
    dialogue: Dialogue,
    grader: Grader,
    *,
    context: int = CONTEXT,
) -> pd.DataFrame:
    """Grades with the columns `right` (by `grader`) and `exact` (as strings), and, for the text cut where prompt and
    completion reach `context` tokens, `right_cut`, `exact_cut` and `tokens_cut`.

    `token_ids`: one sequence per row of `grades`. Raises UserError where a prompt alone fills the context.
    """
    room = context - grades["problem_id"].map(prompt_tokens)
    if (room < 1).any():
        problem = grades.loc[room < 1, "problem_id"].iloc[0]
        raise UserError(f"the prompt of '{problem}' leaves no room in {context} tokens")
    gold = grades["problem_id"].map(golds).tolist()
    cut = (grades["n_tokens"] > room).to_numpy()
    at = [int(i) for i in np.flatnonzero(cut)]
    short = [list(token_ids[i])[: int(room.iloc[i])] for i in at]
    short_texts = completion_texts(short, dialogue.tokenizer, prefill=dialogue.prefill) if at else []
    short_golds = [gold[i] for i in at]
    right = (grades["outcome"] == Outcome.CORRECT).to_numpy()
    exact = np.array([outcome is Outcome.CORRECT for outcome in judge_exactly(grades["text"].tolist(), gold)])
    right_cut, exact_cut = right.copy(), exact.copy()
    if at:
        right_cut[at] = [outcome is Outcome.CORRECT for outcome in grader.grade(short_texts, short_golds)]
        exact_cut[at] = [outcome is Outcome.CORRECT for outcome in judge_exactly(short_texts, short_golds)]
    return grades.assign(
        right=right,
        exact=exact,
        right_cut=right_cut,
        exact_cut=exact_cut,
        tokens_cut=np.where(cut, room, grades["n_tokens"]),
    )


def count(frame: pd.DataFrame, problems: Sequence[str]) -> Counted:
    """The counts of a run from its grades under every protocol; `problems` in the order of their file."""
    asked = [problem for problem in problems if problem in set(frame["problem_id"])]
    columns = {(False, False): "right", (False, True): "exact", (True, False): "right_cut", (True, True): "exact_cut"}
    return Counted(
        {key: arrange(frame, asked, column).astype(bool) for key, column in columns.items()},
        {False: arrange(frame, asked, "n_tokens"), True: arrange(frame, asked, "tokens_cut")},
    )


def measure(candidates: Mapping[str, Sequence[Counted]], k: int) -> pd.DataFrame:
    """Each method's cells under our protocol, with each part of the released one in place of ours, and with all parts.

    `candidates`: each method's runs. Our protocol takes their mean; "chosen on the reported problems" takes the run of
    highest ratio under the other parts in place.
    """
    protocols = {OURS: (), **{part: (part,) for part in PARTS}, EVERYTHING: PARTS}
    lines = []
    for protocol, parts in protocols.items():
        cells = {}
        for method, runs in candidates.items():
            found = [run.cells(parts, k) for run in runs]
            if "chosen on the reported problems" in parts:
                cells[method] = max(found, key=lambda cell: cell[2])
            else:
                cells[method] = tuple(np.mean(found, axis=0))
        order = sorted(cells, key=lambda method: -cells[method][2])
        lines += [
            {"kind": "cell", "protocol": protocol, "method": method, "candidates": len(candidates[method])}
            | dict(zip(("pass", "length", "ratio"), cell, strict=True))
            | {"rank": 1 + order.index(method)}
            for method, cell in cells.items()
        ]
    return pd.DataFrame(lines).assign(k=k)


def ranking_chances(candidates: Mapping[str, Sequence[Counted]], k: int, draws: int = DRAWS) -> pd.DataFrame:
    """The frequency of each ranking by first-k Ratio@k, best first, over draws of 15 problems.

    A draw takes one run of each method, averaged over sampling seeds: the few problems dominate the noise. All methods
    get the same problems.
    """
    generator = numpy_stream(0, "protocol")
    solved, tokens = {}, {}
    for method, runs in candidates.items():
        solved[method] = np.stack([first_k(run.correct[False, False], k).mean(axis=0) for run in runs])  # (R, P)
        tokens[method] = np.stack([run.tokens[False][..., :k].mean(axis=(0, 2)) for run in runs])
    methods = list(candidates)
    P = solved[methods[0]].shape[1]
    counts: dict[tuple[str, ...], int] = {}
    for _ in range(draws):
        problems = generator.permutation(P)[:PROBLEMS]
        ratios = {}
        for method in methods:
            run = int(generator.integers(len(solved[method])))
            ratios[method] = solved[method][run, problems].mean() / tokens[method][run, problems].mean()
        ranking = tuple(sorted(methods, key=lambda method: -ratios[method]))
        counts[ranking] = counts.get(ranking, 0) + 1
    rows = [
        {"kind": "ranking", "protocol": f"{PROBLEMS} problems drawn of {P}", "method": " > ".join(ranking)}
        | {"chance": count / draws, "k": k}
        for ranking, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return pd.DataFrame(rows)


def first_chances(rankings: pd.DataFrame) -> dict[str, float]:
    """The probability that each method ranks first."""
    chances: dict[str, float] = {}
    for text, chance in zip(rankings["method"], rankings["chance"], strict=True):
        first = text.split(" > ")[0]
        chances[first] = chances.get(first, 0.0) + chance
    return chances


def order_chances(rankings: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The probability that a ranks before b, for every pair."""
    chances: dict[tuple[str, str], float] = {}
    for text, chance in zip(rankings["method"], rankings["chance"], strict=True):
        for pair in itertools.combinations(text.split(" > "), 2):
            chances[pair] = chances.get(pair, 0.0) + chance
    return chances


def protocol_blocks(cells: pd.DataFrame, rankings: pd.DataFrame) -> list[Block]:
    """The table for readers."""
    k = cells["k"].iloc[0]
    methods, protocols = list(cells["method"].unique()), list(cells["protocol"].unique())
    found = cells.set_index(["protocol", "method"])
    columns = {"protocol": protocols} | {
        method: [f"{found.loc[(p, method), 'ratio']:#.3g} ({found.loc[(p, method), 'rank']})" for p in protocols]
        for method in methods
    }
    first = first_chances(rankings)
    top = rankings.head(10)
    chances = ", ".join(f"{method} {first.get(method, 0.0):.0%}" for method in methods)
    return [
        f"# What the protocol of evaluation does, Ratio@{k} and rank",
        _HOW_TO_READ,
        Table(columns),
        "## Rankings under 15 problems",
        f"{len(rankings)} rankings came out, the likeliest in {top['chance'].iloc[0]:.1%} of the draws. "
        f"The chance to be first: {chances}.",
        Table({"ranking": list(top["method"]), "chance": [f"{chance:.1%}" for chance in top["chance"]]}),
    ]


_HOW_TO_READ = """\
The same checkpoints and completions under both protocols. Each line puts one part of the released protocol in place of
ours, the last all of them. Ours: Pass@k without bias over all problems and samples, graded as mathematics, the mean
over training seeds. Chosen on the reported problems: the best of a method's candidates by the ratio that is reported.
Training seeds stand for checkpoints, which are not kept; IAPO's grid of weights counts where the tier has trained it.
"""
