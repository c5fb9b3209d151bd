"""Calibration of early answers in the micro world: their entropy against the true uncertainty.

After a prefix of its own reasoning a model is made to answer at once, and the entropy of that answer's first token is
what early exit reads. The same prefix is then continued many times with the same model, and the answers that the
continuations reach are counted. Where the two entropies agree, early exit measures what the model will answer; where
they do not, it measures something else, such as certainty about a running value.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.nn.functional import log_softmax

from iapo_bench.config.report import CalibrationJob, Labels, TokensJob
from iapo_bench.models.checkpoints import accelerator, load_model, load_tokenizer, stop_ids, torch_dtype
from iapo_bench.report.document import Block, Table, ranged, write_document
from iapo_bench.report.rows import caution, opening
from iapo_bench.report.style import GREY, STYLE, new_figure, save_figure
from iapo_bench.rollout import Completion, Sampling
from iapo_bench.rollout.prompts import encode
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.seeds import numpy_stream, stream_seed
from iapo_bench.tokens.roles import micro_world, problems_asked, read_samples, reasoned, select, to_words
from iapo_bench.worlds import ANSWER_OPEN, POSTFIX

PREFIXES, CONTINUATIONS, MAX_TOKENS = 200, 64, 128
PARTS = 4  # equal parts of a completion's reasoning


def make_calibration(
    job: CalibrationJob, *, model: Path, samples: Path, data: Path, out: Path, figure: Path, prefixes: int = PREFIXES
) -> None:
    """Write a row for each part of the reasoning and one for all of it (`out`, CSV; .md, .tex and .html beside it), and
    their figure.

    Columns: part, prefixes, continuations (of each), `answered` (share of continuations with an answer),
    `early_entropy` and `continued_entropy` (nats, means), `gap` (their difference) with its 95% interval,
    `correlation` (Spearman), and `divergence` (nats, mean Kullback-Leibler divergence of the early answer from the
    continuations'). Raises UserError for another world than micro.
    """
    measured = measure(job, model=model, samples=samples, data=data, prefixes=prefixes)
    table = summarise(measured)
    write_document(out, table, calibration_blocks(job.labels, table))
    save_figure(calibration_figure(job.labels, measured), figure)


def measure(job: TokensJob, *, model: Path, samples: Path, data: Path, prefixes: int = PREFIXES) -> pd.DataFrame:
    """A row for each prefix: where it ends (0 to 1), both entropies, the divergence, and the share that answered.

    A prefix of a problem's first sample ends at a random word of its reasoning. An answer is its first token, as early
    exit reads it; the entropy of the continuations has the Miller-Madow correction.
    """
    world = micro_world(job)
    frame = select(read_samples(samples), prefixes).groupby("problem_id").head(1)
    tokenizer, network = load_tokenizer(model), load_model(model, dtype=torch_dtype(job.dtype)).to(accelerator())
    dialogue = world.dialogue(tokenizer)
    prompts = encode(problems_asked(frame, samples, data), dialogue, model, MAX_TOKENS)
    rng = numpy_stream(0, "calibration-prefixes")
    lengths = [sum(reasoned(to_words(ids))) for ids in frame["token_ids"]]
    ends = [int(rng.integers(1, 2 + length)) for length in lengths]
    started = [prompt + ids[:end] for prompt, ids, end in zip(prompts, frame["token_ids"], ends, strict=True)]
    drawn = TransformersEngine(network, batch_size=512, progress=True).generate(
        started,
        Sampling(
            max_tokens=MAX_TOKENS,
            eos_ids=stop_ids(network, dialogue),
            samples_per_prompt=CONTINUATIONS,
            temperature=job.temperature,
            seed=stream_seed(0, "calibration"),
        ),
    )
    postfix = tokenizer(POSTFIX, add_special_tokens=False).input_ids
    opening = tokenizer.convert_tokens_to_ids(ANSWER_OPEN)
    rows = []
    for i, (prefix, length, end) in enumerate(zip(started, lengths, ends, strict=True)):
        early_V = _early_answer(network, prefix + postfix, job.temperature)
        answers = _first_answer_tokens(drawn[i * CONTINUATIONS : (i + 1) * CONTINUATIONS], opening)
        shares_V = np.bincount(answers, minlength=len(early_V)) / max(1, len(answers))
        found = shares_V > 0
        plug_in = -float((shares_V[found] * np.log(shares_V[found])).sum())
        rows.append(
            {
                "place": (end - 1) / max(1, length),
                "early_entropy": -float((np.exp(early_V) * early_V).sum()),
                "continued_entropy": plug_in + (found.sum() - 1) / (2 * len(answers)) if answers else np.nan,
                "divergence": -float((shares_V[found] * early_V[found]).sum()) - plug_in,
                "answered": len(answers) / CONTINUATIONS,
            }
        )
    return pd.DataFrame(rows)


def summarise(measured: pd.DataFrame) -> pd.DataFrame:
    """The table of `make_calibration` from rows of `measure`."""
    part = np.minimum((measured["place"] * PARTS).astype(int), PARTS - 1)
    groups = {f"{i + 1} of {PARTS}": measured[part == i] for i in range(PARTS)} | {"all": measured}
    rows = []
    for name, group in groups.items():
        known = group.dropna()
        gap = known["early_entropy"] - known["continued_entropy"]
        half = 1.96 * float(gap.std(ddof=1)) / np.sqrt(len(gap)) if len(gap) > 1 else np.nan
        rows.append(
            {"part": name, "prefixes": len(known), "continuations": CONTINUATIONS, "answered": group["answered"].mean()}
            | {column: known[column].mean() for column in ("early_entropy", "continued_entropy")}
            | {"gap": gap.mean(), "gap_lo": gap.mean() - half, "gap_hi": gap.mean() + half}
            | {"correlation": known["early_entropy"].corr(known["continued_entropy"], method="spearman")}
            | {"divergence": known["divergence"].mean()}
        )
    return pd.DataFrame(rows)


def calibration_blocks(labels: Labels, table: pd.DataFrame) -> list[Block]:
    """The table of `make_calibration` for readers."""
    columns = {"part of the reasoning": table["part"].tolist(), "prefixes": table["prefixes"].map(str).tolist()}
    for heading, name in (("early answer", "early_entropy"), ("continuations", "continued_entropy")):
        columns[heading] = [f"{value:.2f}" for value in table[name]]
    columns["difference"] = [ranged(*ends, form="+.2f") for ends in table[["gap", "gap_lo", "gap_hi"]].to_numpy()]
    columns["correlation"] = [ranged(value, np.nan, np.nan, form=".2f") for value in table["correlation"]]
    return [
        *opening(labels, "whether early answers know their own uncertainty"),
        Table(
            columns,
            f"Entropy, in nats, of the base's early answers and of the answers that {CONTINUATIONS} continuations of "
            "the same prefixes reach; their difference with its 95% interval, and Spearman's correlation.",
        ),
    ]


def calibration_figure(labels: Labels, measured: pd.DataFrame) -> Figure:
    """Each prefix: the entropy of its early answer against that of its continuations' answers."""
    known = measured.dropna()
    with mpl.rc_context(STYLE):
        title = f"{caution(labels.tier)}{labels.model} on {labels.dataset}: early answers of the base against "
        title += f"{CONTINUATIONS} continuations of each of {len(known)} prefixes"
        figure, (ax,) = new_figure(1, title, height=3.2, wide=False)
        reach = 1.05 * float(known[["early_entropy", "continued_entropy"]].to_numpy().max(initial=0.1))
        ax.plot([0, reach], [0, reach], color=GREY, linewidth=1, linestyle="--", zorder=1)
        points = ax.scatter(
            known["continued_entropy"], known["early_entropy"], c=known["place"], cmap="cividis", s=9, vmin=0, vmax=1
        )
        figure.colorbar(points, ax=ax, label="place in the reasoning")
        ax.set_xlabel("entropy of the continuations' answers, nats")
        ax.set_ylabel("entropy of the early answer, nats")
    return figure


@torch.no_grad()
def _early_answer(network: torch.nn.Module, ids: list[int], temperature: float) -> np.ndarray:
    """Log-probabilities of the token after `ids`, float64 (V,)."""
    logits_V = network(input_ids=torch.tensor([ids], device=accelerator())).logits[0, -1].double()
    return log_softmax(logits_V / temperature, dim=-1).cpu().numpy()


def _first_answer_tokens(completions: Sequence[Completion], opening: int) -> list[int]:
    """The token after the last opening tag of every completion that has one."""
    found = []
    for completion in completions:
        ids = completion.token_ids
        places = [i for i, token in enumerate(ids[:-1]) if token == opening]
        if places:
            found.append(ids[places[-1] + 1])
    return found
