"""The table of what lm-eval measured: a row for each run, task and metric."""

from pathlib import Path

import pandas as pd

from iapo_bench.errors import damaged
from iapo_bench.files import read_json, whole_file
from iapo_bench.report.rows import split_run

COLUMNS = ("method", "train_seed", "task", "metric", "value", "stderr", "n", "backend", "versions")
_OF_A_SCORE = ("task", "metric", "value", "stderr", "n")


def make_lm_eval_table(runs: dict[str, Path], out: Path) -> None:
    """Join the scores of runs (METHOD/SEED, or `base`: directories with `lm_eval/scores.json`) into the CSV file `out`.

    `value` and its standard error are in the metric's own unit, accuracies from 0 to 1; `n` counts problems. The base
    has no training seed. Raises UserError for scores that are missing or broken.
    """
    rows = []
    for name, folder in runs.items():
        path = folder / "lm_eval" / "scores.json"
        method, seed = split_run(name)
        with damaged(path, f"run `iapo-bench lm-eval` on {method}"):
            content = read_json(path)
            made = {"backend": content["backend"], "versions": content["versions"]}
            for score in content["scores"]:
                rows.append({"method": method, "train_seed": seed} | {key: score[key] for key in _OF_A_SCORE} | made)
    with whole_file(out) as partial:
        pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(partial, index=False, float_format="%.6g")
