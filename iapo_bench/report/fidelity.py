"""Fidelity to the released code: each departure, its place, its effect on credit and on the trained model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from iapo_bench.config.fidelity import FidelityJob
from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import accelerator, load_model, load_tokenizer, stop_ids, torch_dtype
from iapo_bench.report.departures import ALL, DEPARTURES, departures_of
from iapo_bench.report.document import Block, Table, write_document
from iapo_bench.report.effects import Credits, Judged, effects
from iapo_bench.report.rows import Row, change, read_rows
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.collate import collate
from iapo_bench.rollout.load import make_engine
from iapo_bench.rollout.prompts import encode
from iapo_bench.seeds import stream_seed
from iapo_bench.worlds import POSTFIX, read_problems
from iapo_bench.worlds.dialogue import completion_texts
from iapo_bench.worlds.exact import grade_exact, is_formatted_on_one_line
from iapo_bench.worlds.grading import Outcome, is_formatted, make_grader
from iapo_bench.worlds.load import load_world

STEPS = 4  # rollouts, each of a training step's size
MEASURES = ("pass@1", "length", "ratio@1")


def make_fidelity(job: FidelityJob, *, base: Path, data: Path, summaries: Sequence[Path], out: Path) -> None:
    """Write the table of departures (`out`, CSV; .md, .tex and .html beside it).

    Credit is compared on rollouts of the model `base`; trained models by the summaries of methods and of their variants
    under the profile `released` or a single departure. Without summaries, only credit is compared.
    """
    model = load_model(base, dtype=torch_dtype(job.dtype)).to(accelerator())
    tokenizer = load_tokenizer(base)
    settings = {
        "temperature": job.train.temperature,
        "micro_batch_tokens": job.train.micro_batch_tokens,
        "postfix_ids": tokenizer(POSTFIX, add_special_tokens=False).input_ids,
    }
    credits = Credits(draw_rollouts(job, model, tokenizer, base, data), model, **settings)
    credit = effects(credits, job.methods).assign(of="credit")
    trained = trained_effects(read_rows(summaries), job) if summaries else pd.DataFrame()
    table = with_places(pd.concat([credit, trained.assign(of="trained model")], ignore_index=True))
    write_document(out, table, fidelity_blocks(table))


def draw_rollouts(job: FidelityJob, model: Any, tokenizer: Any, base: Path, data: Path) -> list[Judged]:
    """The rollouts of `STEPS` training steps, judged by the suite and as the released code does."""
    config, world = job.train, load_world(job.world, job.world_seed)
    problems = read_problems(data / "train.jsonl")[: STEPS * config.prompts_per_step]
    dialogue = world.dialogue(tokenizer, job.prompt)
    prompts = encode(problems, dialogue, base, config.max_tokens)
    width = max(map(len, prompts), default=0) + config.max_tokens
    engine = make_engine(
        config.engine, base, model, width=width, batch_size=config.rollout_batch_size, gpu_memory=config.engine_memory
    )
    rollouts = []
    with make_grader(world.grader) as grader:
        for start in range(0, len(prompts), config.prompts_per_step):
            step = slice(start, start + config.prompts_per_step)
            sampling = Sampling(
                max_tokens=config.max_tokens,
                eos_ids=stop_ids(model, dialogue),
                samples_per_prompt=config.group_size,
                temperature=config.temperature,
                seed=stream_seed(0, "fidelity", start),
            )
            completions = engine.generate(prompts[step], sampling)
            ids = [completion.token_ids for completion in completions]
            texts = completion_texts(ids, tokenizer, stop_ids=sampling.eos_ids, prefill=dialogue.prefill)
            golds = [problem.answer for problem in problems[step] for _ in range(config.group_size)]
            outcomes = grader.grade(texts, golds)
            batch = collate(
                prompts[step],
                completions,
                [outcome is Outcome.CORRECT for outcome in outcomes],
                [is_formatted(text) for text in texts],
                group_size=config.group_size,
                max_tokens=config.max_tokens,
                pad_id=int(tokenizer.pad_token_id),
                device=model.device,
            )
            exact = [grade_exact(text, gold) is Outcome.CORRECT for text, gold in zip(texts, golds, strict=True)]
            one_line = [is_formatted_on_one_line(text) for text in texts]
            flags = [batch.correct_B.new_tensor(values) for values in (exact, one_line)]
            rollouts.append(Judged(batch, *flags))
    return rollouts


def trained_effects(rows: Sequence[Row], job: FidelityJob) -> pd.DataFrame:
    """A row for each measure of each variant that reproduces released code: variant minus method, paired by problem.

    Training seeds are a sample too where there are several. Raises UserError for a variant without its method.
    """
    by_name = {row.method: row for row in rows}
    lines = []
    for name, departure in job.departed.items():
        variant = by_name.get(name)
        if variant is None or variant.parent not in by_name:
            raise UserError(f"fidelity needs the summaries of {name} and of the method that it varies")
        method = by_name[variant.parent]
        several = min(len(row.tally.train_seeds) for row in (variant, method)) > 1
        for measure in MEASURES:
            found = change(variant, method, measure, seeds=several)
            values = [row.tally.values(measure) for row in (variant, method)]
            lines.append(
                {"method": variant.parent, "departure": departure, "compared": measure}
                | {"paper": values[1].mean(), "departed": values[0].mean(), "difference": found.value}
                | dict(zip(("lo", "hi"), found.interval, strict=True))
                | {"p": found.p, "train_seeds": " ".join(map(str, variant.tally.train_seeds))}
            )
    return pd.DataFrame(lines)


def with_places(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the description, switch and source lines of each departure, and a row for each departure without a
    switch."""
    rows = [
        {"method": method, "departure": departure.name, "of": "not reproduced"}
        for departure in DEPARTURES
        for method in departure.methods
        if method in set(table["method"]) and not departure.options and not departure.train
    ]
    table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    known = {(method, d.name): d for d in DEPARTURES for method in d.methods}
    found = [known.get(key) for key in zip(table["method"], table["departure"], strict=True)]
    places = {
        "text": [d.text if d else "The profile `released`: all departures that a switch follows." for d in found],
        "where": [d.where(m) if d else "profile: released" for d, m in zip(found, table["method"], strict=True)],
        "source": [d.source if d else "" for d in found],
    }
    first = ["method", "departure", "of", "compared"]
    rest = [column for column in table if column not in first]
    return table.assign(**places)[[*first, *rest, *places]]


def fidelity_blocks(table: pd.DataFrame) -> list[Block]:
    """The table for readers: a part for each method."""
    blocks: list[Block] = ["# The released code and the equations", _HOW_TO_READ]
    for method in table["method"].unique():
        own = table[table["method"] == method]
        credit, trained = own[own["of"] == "credit"], own[own["of"] == "trained model"]
        blocks += [f"## {method}", _credit_table(credit)]
        if not trained.empty:
            blocks.append(_trained_table(trained))
        blocks.append(_places_table(str(method)))
    return blocks


def _credit_table(credit: pd.DataFrame) -> Table:
    acting = credit[credit["relative_difference"] > 1e-6]
    caption = "What each departure does to credit: it alone, and all together."
    if elsewhere := [name for name in credit["departure"].unique() if name not in set(acting["departure"])]:
        caption += f" Nothing here: {', '.join(elsewhere)}."
    return Table(
        {
            "departure": acting["departure"].tolist(),
            "compared": acting["compared"].tolist(),
            "correlation": [f"{value:.3f}" for value in acting["correlation"]],
            "relative size": [f"{value:.3f}" for value in acting["relative_size"]],
            "relative difference": [f"{value:.3f}" for value in acting["relative_difference"]],
            "signs changed": [f"{value:.1%}" for value in acting["sign_flips"]],
        },
        caption,
    )


def _trained_table(trained: pd.DataFrame) -> Table:
    digits = [".2f" if measure == "length" else ".4f" for measure in trained["compared"]]

    def signed(value: float, form: str) -> str:
        return f"{value:+{form}}".replace("-", "\N{MINUS SIGN}")

    bounds = zip(trained["difference"], trained["lo"], trained["hi"], digits, strict=True)
    return Table(
        {
            "departure": trained["departure"].tolist(),
            "measure": trained["compared"].tolist(),
            "paper": [f"{value:{form}}" for value, form in zip(trained["paper"], digits, strict=True)],
            "departed": [f"{value:{form}}" for value, form in zip(trained["departed"], digits, strict=True)],
            "difference": [f"{signed(d, f)} [{signed(lo, f)}, {signed(hi, f)}]" for d, lo, hi, f in bounds],
            "p": [f"{value:.2g}" for value in trained["p"]],
            "training seeds": trained["train_seeds"].tolist(),
        },
        "What they do to the trained model.",
    )


def _places_table(method: str) -> Table:
    departures = departures_of(method)
    return Table(
        {
            "departure": [departure.name for departure in departures],
            "released code": [departure.text for departure in departures],
            "its lines": [departure.source for departure in departures],
            "here": [departure.where(method) for departure in departures],
        },
        "What departs, and where the switch is.",
    )


_HOW_TO_READ = f"""\
Credit is compared on rollouts of the base model, over all real tokens: the advantage, the gradient's weight (the
advantage times what the loss multiplies a token by) and IAPO's two terms. "{ALL}" is the profile `released`. Trained
models are compared by problem; with several training seeds the interval covers those too. Lines are of
`package_code/trainer/g2rpo_trainer.py` unless a file is named.
"""
