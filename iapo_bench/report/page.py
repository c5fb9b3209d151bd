"""The report on one page: the verdict first, then figures with captions, then tables."""

import html
import re
from pathlib import Path

import pandas as pd

from iapo_bench.config.report import BASE
from iapo_bench.errors import UserError
from iapo_bench.files import read_csv, read_text, whole_file
from iapo_bench.report.comparisons import NOT_KNOWN, UNDECIDED, label
from iapo_bench.report.document import CSS, Block, fragment
from iapo_bench.report.rows import caution

CAPTIONS = {
    "paired": "What each method changed in the base, in Pass@1 and in length, with 95% intervals. All answer the same "
    "problems, so differences are paired by problem.",
    "accuracy_length": "Accuracy against length, a row alone, with intervals of their own. Rows that overlap may be "
    "told apart by pairs all the same.",
    "frontier": "Methods beside what the base can do untrained: cut after L tokens, or the shortest of n samples.",
    "comparisons": "Every pair of rows. A number is a difference that paired tests tell from chance, a point one that "
    "they do not.",
    "training": "Share correct and mean length of the completions that were trained on.",
    "wallclock": "Seconds of training by phase, and of sampling the test problems; other jobs may have run meanwhile.",
    "informativeness": "How well scores rank needed tokens above others (AUC; a coin has .5), and what each method's "
    "completions are made of.",
    "calibration": "The entropy of the base's early answers against that of answers which continuations reach.",
}
TABLES = (
    "table1",
    "frontier",
    "costs",
    "comparisons",
    "wallclock",
    "lm_eval",
    "informativeness",
    "roles",
    "calibration",
)
_COLUMNS = (
    *("model", "dataset", "tier", "measure", "a", "b", "checkpoints_verdict", "methods_verdict"),
    *("n_problems", "n_samples", "train_seeds_a", "train_seeds_b"),
)


def make_page(table: Path, out: Path) -> None:
    """Write the page of the results beside `table` (`table1.csv`) to `out`; missing figures and tables are left out.

    Raises UserError without comparisons, which open the page.
    """
    folder = table.parent
    compared = folder / "comparisons.csv"
    if not compared.is_file():
        raise UserError(f"{compared} does not exist: make the comparisons first")
    pairs = read_csv(compared, dict.fromkeys(_COLUMNS, str), "make the comparisons again")
    if pairs.empty:
        raise UserError(f"{compared} is empty: make the comparisons again")
    first = pairs.iloc[0]
    pairs = pairs[pairs["dataset"] == first["dataset"]]  # of the training dataset only
    parts = [fragment([f"# {first['model']} on {first['dataset']}", *verdict_blocks(pairs)])]
    behind = html.escape(_behind(pairs))
    for name, caption in CAPTIONS.items():
        if (drawing := folder / "figures" / f"{name}.svg").is_file():
            # Drawings in one page share their ids: without a prefix, the clip paths of one would cut another.
            svg = "<svg" + read_text(drawing).partition("<svg")[2]
            svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
            parts.append(f"<figure>{svg}<figcaption>{html.escape(caption)} {behind}</figcaption></figure>")
    for name in TABLES:
        if (document := folder / f"{name}.html").is_file():
            parts.append(read_text(document).partition("</style>\n")[2].removesuffix("</html>\n"))
    title = html.escape(f"{first['model']} on {first['dataset']}")
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>\n{CSS}</style>'
    with whole_file(out) as partial:
        partial.write_text("\n".join([head, *parts, "</html>\n"]), encoding="utf-8")


def _behind(pairs: pd.DataFrame) -> str:
    """The sample sizes of every figure: problems, samples, and training seeds of the methods."""
    first = pairs.iloc[0]
    seeds = {str(value) for side in ("a", "b") for value in pairs[f"train_seeds_{side}"].dropna() if str(value)}
    return (
        f"{first['n_problems']} problems, {first['n_samples']} samples with each sampling seed, training seeds "
        f"{'; '.join(sorted(seeds))}."
    )


def verdict_blocks(pairs: pd.DataFrame) -> list[Block]:
    """The comparisons in a few sentences: accuracy and length against the base, and how many pairs are decided."""
    tier = str(pairs["tier"].iloc[0])
    blocks: list[Block] = [f"**{caution(tier).strip()}**"] if caution(tier) else []
    measures = list(dict.fromkeys(pairs["measure"]))
    for measure in (measures[0], "length"):
        against = pairs[(pairs["measure"] == measure) & (pairs["a"] == BASE)]
        if against.empty:
            continue
        text = f"**{label(measure)} against the base**, these checkpoints: {_said(against, 'checkpoints')}."
        if (against["methods_verdict"] != NOT_KNOWN).any():
            text += f" These methods, with other training seeds too: {_said(against, 'methods')}."
        blocks.append(text)
    blocks.append(_methods(pairs))
    return blocks


def _said(against: pd.DataFrame, statement: str) -> str:
    """The verdicts of a statement on rows against the base, rows of the same verdict together."""
    said: dict[str, list[str]] = {}
    for name, words in zip(against["b"], against[f"{statement}_verdict"], strict=True):
        said.setdefault(_phrase(name, words), []).append(name)
    return "; ".join(f"{', '.join(names)}: {phrase}" for phrase, names in said.items())


def _phrase(name: str, words: str) -> str:
    if words in (UNDECIDED, NOT_KNOWN):
        return words
    subject, _, better = words.partition(" is ")
    return better if subject == name else f"the base is {better}"


def _methods(pairs: pd.DataFrame) -> str:
    decided = ~pairs["methods_verdict"].isin([UNDECIDED, NOT_KNOWN])
    known = pairs["methods_verdict"] != NOT_KNOWN
    if not known.any():
        return "Whether other training seeds would say the same is not known: each method was trained with one seed."
    return f"With other training seeds too, {decided.sum()} of {known.sum()} comparisons are decided."
