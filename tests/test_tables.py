"""The tables: columns, markdown, wall-clock rows, and files written whole or not at all."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from iapo_bench.config.report import Labels
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Cell, Summary, Tally
from iapo_bench.report import wallclock
from iapo_bench.report.accuracy_length import accuracy_length
from iapo_bench.report.comparisons import compare, comparison_blocks
from iapo_bench.report.document import latex, markdown, page, write_document
from iapo_bench.report.rows import Row, read_rows, split_run
from iapo_bench.report.table1 import best_rows, differing_environments, table_blocks, table_frame
from iapo_bench.report.wallclock import make_wallclock, wallclock_row
from iapo_bench.train.trainer import PHASES

PUBLISHED_COLUMNS = [
    *("model", "dataset", "method"),
    *("pass@16", "pass@16_std", "pass@32", "pass@32_std"),
    *("length@16", "length@16_std", "length@32", "length@32_std"),
    *("ratio@16", "ratio@32"),
]


def make_row(method="iapo", ks=(2, 16), accuracy=0.5, length=40.0, half=0.01, **changes) -> Row:
    """A row whose pass and length intervals are `half` (relative) wide on either side; its counts are drawn."""
    cells = {}
    for k in ks:
        for measure, mean in (("pass", accuracy), ("length", length), ("ratio", accuracy / length)):
            cells[f"{measure}@{k}"] = Cell(mean, mean / 100, mean * (1 - half), mean * (1 + half))
    labels = {"model": "small", "dataset": "micro", "tier": "micro", "profile": "paper", "selection": "validation"}
    own = {key: changes.pop(key) for key in list(changes) if key in labels or key == "parent"}
    summary = {
        "n_problems": 200,
        "n_samples": 32,
        "train_seeds": [0, 1],
        "sampling_seeds": [42, 142],
        "estimator": "unbiased",
        "accuracy": accuracy,
        "outcomes": {"CORRECT": 1200, "WRONG": 33, "UNPARSEABLE": 44, "TIMEOUT": 5, "ERROR": 6},
        "truncated": 0.031,
        "format_rate": 0.982,
    } | changes
    generator = np.random.default_rng([int(1e6 * accuracy), *method.encode()])
    shape = (len(summary["train_seeds"]), len(summary["sampling_seeds"]), summary["n_problems"])
    counts = {
        "correct": generator.binomial(summary["n_samples"], accuracy, shape),
        "tokens": np.rint(summary["n_samples"] * (length + generator.normal(0, 1, shape))).astype(int),
    }
    summary["accuracy"] = float(counts["correct"].mean() / summary["n_samples"])
    tally = Tally(
        tuple(summary["train_seeds"]),
        tuple(summary["sampling_seeds"]),
        tuple(f"p{i}" for i in range(summary["n_problems"])),
        summary["n_samples"],
        counts,
    )
    return Row(method=method, summary=Summary(cells=cells, **summary), tally=tally, **(labels | own))


def table_markdown(rows, published=None) -> str:
    return markdown(table_blocks(rows, published))


def write_table(rows, out) -> None:
    write_document(out, table_frame(rows), table_blocks(rows))


def parse(markdown: str) -> list[dict[str, str]]:
    """The rows of every table in a markdown text."""
    rows, header = [], None
    for line in markdown.splitlines():
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = [cell.strip() for cell in line.strip("|").split("|")]
        elif not line.startswith("|--"):
            rows.append(dict(zip(header, (cell.strip() for cell in line.strip("|").split("|")), strict=True)))
    return rows


def test_columns_are_the_published_ones_and_then_the_rest():
    frame = table_frame([make_row("base"), make_row()])
    assert list(frame.columns) == [
        *PUBLISHED_COLUMNS,
        *("pass@2", "pass@2_std", "length@2", "length@2_std", "ratio@2"),
        *("tier", "profile", "n_problems", "n_samples", "train_seeds", "selection"),
        *("pass@2_lo", "pass@2_hi", "pass@16_lo", "pass@16_hi"),
        *("length@2_lo", "length@2_hi", "length@16_lo", "length@16_hi"),
        *("ratio@2_lo", "ratio@2_hi", "ratio@16_lo", "ratio@16_hi"),
        *("format_rate", "truncated"),
    ]


def test_values_order_and_missing_ks(tmp_path):
    rows = [make_row("base"), make_row("zeta", ks=(16,)), make_row("alpha", accuracy=2 / 3)]
    write_table(rows, tmp_path / "table.csv")
    frame = pd.read_csv(tmp_path / "table.csv", dtype={"train_seeds": str})
    assert frame["method"].tolist() == ["base", "zeta", "alpha"]
    assert frame["pass@32"].isna().all()
    assert frame["ratio@32"].isna().all()
    assert frame["pass@2"].isna().tolist() == [False, True, False]
    assert frame.loc[2, ["pass@16", "pass@16_std", "pass@16_lo"]].tolist() == [0.666667, 0.00666667, 0.66]
    assert frame["train_seeds"].fillna("").tolist() == ["", "0 1", "0 1"]
    assert frame.loc[2, ["n_problems", "n_samples", "selection"]].tolist() == [200, 32, "validation"]


def test_rows_survive_their_files(tmp_path):
    rows = [make_row("base"), make_row()]
    paths = [tmp_path / f"{row.method}.json" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        row.write(path)
    for found, row in zip(read_rows(paths), rows, strict=True):
        assert (found.to_dict(), found.tally.problems) == (row.to_dict(), row.tally.problems)
        assert all((found.tally.counts[name] == count).all() for name, count in row.tally.counts.items())
    for content in ("{", "{}", json.dumps({**rows[0].to_dict(), "tier": 1})[:-30]):
        paths[1].write_text(content)
        with pytest.raises(UserError, match=r"iapo\.json (is not JSON|cannot be read)"):
            read_rows(paths)
    rows[1].write(paths[1])
    paths[1].with_suffix(".parquet").unlink()
    with pytest.raises(UserError, match=r"iapo\.parquet.*measure again"):
        read_rows(paths)
    with pytest.raises(UserError, match=r"none\.json"):
        read_rows([tmp_path / "none.json"])


def test_a_row_that_is_there_twice_and_the_counts_of_another_are_refused(tmp_path):
    paths = [tmp_path / name for name in ("iapo.json", "dapo.json", "other.json")]
    for path, row in zip(paths, (make_row(), make_row("dapo"), make_row(accuracy=0.6)), strict=True):
        row.write(path)
    with pytest.raises(UserError, match=r"other\.json: second summary of iapo on micro: leave one out"):
        read_rows(paths)
    shutil.copy(paths[1].with_suffix(".parquet"), paths[0].with_suffix(".parquet"))
    with pytest.raises(UserError, match=r"iapo\.json .*the counts by problem beside it come from other grades"):
        read_rows(paths[:2])


def test_markdown_cells_and_what_stands_behind_them():
    text = table_markdown([make_row("iapo"), make_row("base", accuracy=0.4, length=60)])
    results, answers = parse(text)[::2]
    assert results == {
        "method": "iapo",
        "Pass@2": "**.500 ±.005**",
        "Pass@16": "**.500 ±.005**",
        "Length": "**40.0 ±0.4**",
        "Ratio@16 \N{MULTIPLICATION SIGN} 10³": "**12.5 ±0.1**",
    }
    assert "200 problems, 32 samples with each of the sampling seeds 42, 142; estimator unbiased" in text
    assert "training seeds 0, 1; settings chosen by validation." in text
    assert "Smallest true difference in Pass@2" in text
    assert (answers["CORRECT"], answers["ERROR"]) == ("93.2%", "0.5%")
    assert (answers["truncated"], answers["format"]) == ("3.1%", "98.2%")
    assert "training seeds" not in answers, "what is the same for all is said once"
    mixed = [make_row("base"), make_row("dapo"), make_row("gtpo", selection="published settings")]
    assert "published settings" in [row.get("settings chosen by") for row in parse(table_markdown(mixed))]
    assert max(map(len, text.splitlines())) <= 200


def bold(key: str, rows: list[Row]) -> list[bool]:
    pairs = compare(rows)
    return [row.name in best_rows(rows, pairs, key) for row in rows]


def test_bold_is_what_paired_tests_leave_undecided_with_the_best():
    def of(*accuracies: float) -> list[bool]:
        return bold("pass@16", [make_row(f"m{i}", accuracy=a, ks=(1, 16)) for i, a in enumerate(accuracies)])

    assert of(0.01, 0.05, 0.03) == [False, True, False]
    assert of(0.01, 0.05, 0.0495) == [False, True, True]
    assert of(0.05, 0.0499, 0.0498) == [False, False, False], "where it would be all, none is"


def test_rows_that_overlap_can_be_told_apart_by_pairs():
    """Intervals of rows that overlap, on problems that both find hard or easy alike."""
    generator = np.random.default_rng(0)
    hard_P = generator.beta(1, 1, 200)
    rows = []
    for name, shift in (("a", 0.0), ("b", 0.03), ("c", 0.0)):
        row = make_row(name, ks=(1, 16), accuracy=0.5 + shift, half=0.2, train_seeds=[0])
        counts = row.tally.counts | {"correct": generator.binomial(32, np.clip(hard_P + shift, 0, 1), (1, 2, 200))}
        rows.append(replace(row, tally=replace(row.tally, counts=counts)))
    assert bold("pass@1", rows) == [False, True, False]


def test_a_model_that_says_nothing_does_not_win_by_length():
    rows = [make_row("base", accuracy=0.4, length=60), make_row("iapo", length=50), make_row("mute", (2, 16), 0.02, 5)]
    assert bold("length@16", rows) == [False, True, False]
    assert bold("ratio@16", rows) == [False, True, False]
    assert bold("length@16", rows[1:]) == [False, True], "without a base there is nothing to fall below"


def test_outcomes_that_never_occur_take_no_room():
    """The table is read in 830 pixels: constants, and outcomes of which there are none, are no columns."""
    row = make_row()
    assert "TIMEOUT" in parse(table_markdown([row]))[-1]
    clean = replace(row, summary=replace(row.summary, outcomes={**row.summary.outcomes, "TIMEOUT": 0, "ERROR": 0}))
    assert not {"TIMEOUT", "ERROR"} & parse(table_markdown([clean]))[-1].keys()


def test_controls_stand_in_the_table_but_never_in_bold():
    rows = [make_row("base", accuracy=0.4, length=60), make_row("iapo"), make_row("base_cut", (2,), 0.3, 20)]
    results = [row for row in parse(table_markdown(rows)) if "Length" in row or "Pass@16" in row]
    assert [row["method"] for row in results] == ["base", "iapo", "base_cut"]
    assert results[2]["Pass@2"] == ".300 ±.003"
    assert results[2]["Pass@16"] == "", "not measured"
    assert not any("**" in cell for cell in results[2].values())


def test_every_form_says_the_same():
    blocks = table_blocks([make_row("base", accuracy=0.4, length=60), make_row("iapo_ni")])
    tex, html = latex(blocks), page(blocks)
    assert tex.count("\\toprule") == tex.count("\\bottomrule") == tex.count("\\begin{table}") == 2
    assert "iapo\\_ni & \\textbf{.500 $\\pm$.005}" in tex
    assert "93.2\\%" in tex
    assert "<td><strong>.500 ±.005</strong></td>" in html
    assert "<title>small on micro (tier micro)</title>" in html


def test_a_smoke_tier_says_that_its_numbers_mean_nothing():
    rows = [make_row("base", tier="smoke"), make_row("iapo", tier="smoke")]
    for text in (table_markdown(rows), markdown(comparison_blocks(compare(rows)))):
        assert "these numbers mean nothing" in text
    assert "mean nothing" in accuracy_length(rows).get_suptitle().replace("\n", " ")
    assert "mean nothing" not in table_markdown([make_row("base"), make_row("iapo")])


def test_unlike_rows_are_not_set_against_each_other():
    rows = [make_row("a"), make_row("b", accuracy=0.9, n_problems=50), make_row("c"), make_row("d", model="large")]
    text = table_markdown(rows)
    assert text.count("## small on micro") == 2
    assert "## large on micro" in text
    assert "50 problems, " in text
    assert "**." not in text, "nothing here has a like to be better than"
    with pytest.raises(UserError, match="no k"):
        table_markdown([make_row("a", ks=(2,)), make_row("b", ks=(4,))])


def test_published_cells_stand_beside_matching_rows_only():
    line = ["small", "micro", "iapo", 0.8519, 0.0084, 0.8979, 0.0068, 150.37, 0.22, 150.15, 0.24, 0.00567, 0.00598]
    published = pd.DataFrame([line], columns=PUBLISHED_COLUMNS)
    (ours,) = parse(table_markdown([make_row(), make_row("base")], published))[4:]
    assert ours["Pass@16"] == "0.8519 ± 0.0084"
    assert ours["Length"] == "150.37 ± 0.22"
    assert ours["Ratio@16 \N{MULTIPLICATION SIGN} 10³"] == "5.67"
    assert "Pass@2" not in ours, "not published"
    for other in ({"model": "large"}, {"dataset": "gsm8k"}):
        assert "Published" not in table_markdown([make_row(**other)], published)


def test_a_profile_other_than_the_papers_is_named():
    text = table_markdown(
        [
            make_row("gtpo"),
            make_row("gtpo", profile="released"),
            make_row("gtpo_released", profile="released"),
            make_row("base", profile="released"),
        ]
    )
    names = [row["method"] for row in parse(text)]
    assert names == ["gtpo", "gtpo (released)", "gtpo_released", "base"] * 2


def test_same_rows_same_files(tmp_path):
    for name in ("a", "b"):
        write_table([make_row("base"), make_row()], tmp_path / f"{name}.csv")
    for suffix in ("csv", "md", "tex", "html"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    csv = tmp_path / "table.csv"
    with pytest.raises(UserError, match="no summaries"):
        write_table([], csv)
    assert not list(tmp_path.iterdir())
    csv.write_text("old")

    def break_off(frame, path, **_):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", break_off)
    with pytest.raises(OSError, match="disk full"):
        write_table([make_row()], csv)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert csv.read_text() == "old"


TIMING = {
    "engine": "transformers",
    "hardware": "a processor",
    "threads": 2,
    "warmup_seconds": 1.5,
    "seconds": 20.0,
    "completions": 100,
    "tokens": 5000,
}
STEP = {f"seconds_{phase}": float(i) for i, phase in enumerate(PHASES, start=1)} | {"tokens": 300, "completions": 8}


def test_wallclock(tmp_path):
    assert wallclock.PHASES == PHASES, "the phases that the trainer writes"
    timing, log = tmp_path / "timing.json", tmp_path / "train.jsonl"
    timing.write_text(json.dumps(TIMING))
    log.write_text(2 * (json.dumps(STEP) + "\n"))
    runs = {}
    for name in ("base", "iapo/3"):
        runs[name] = tmp_path / name
        (runs[name] / "test").mkdir(parents=True)
        shutil.copy(timing, runs[name] / "test")
        shutil.copy(log, runs[name])
    labels = Labels(tier="smoke", dataset="micro", model="small")
    make_wallclock(labels, runs, out=tmp_path / "wallclock.csv", figure=tmp_path / "bars.png")
    frame = pd.read_csv(tmp_path / "wallclock.csv")
    text = (tmp_path / "wallclock.md").read_text()
    assert "numbers mean nothing" in text
    assert re.search(r"\| iapo +\| 2.0 +\| 4.0 ", text), text
    assert list(frame.columns) == [
        *("method", "train_seed", "dataset", "model", "engine", "hardware", "threads", "train_seconds_total"),
        *("train_seconds_rollout", "train_seconds_grade", "train_seconds_signals"),
        *("train_seconds_update", "train_seconds_other", "steps", "completions", "train_tokens_per_second"),
        *("inference_seconds", "inference_completions", "inference_tokens", "inference_tokens_per_second"),
        "warmup_seconds",
    ]
    base, iapo = frame.iloc[0], frame.iloc[1]
    assert (base["method"], iapo["method"], iapo["train_seed"]) == ("base", "iapo", 3)
    assert pd.isna(base["train_seed"])
    assert base["train_seconds_total":"train_tokens_per_second"].isna().all()
    assert base["inference_tokens_per_second"] == 250
    assert (iapo["train_seconds_total"], iapo["train_seconds_signals"]) == (30, 6)
    assert (iapo["steps"], iapo["completions"], iapo["train_tokens_per_second"]) == (2, 16, 20)


@pytest.mark.parametrize("name", ["iapo", "base/0", "/0", "iapo/", ""])
def test_what_is_no_run_is_refused(name):
    with pytest.raises(UserError, match=f"^'{name}' is not the name of a run: write METHOD/SEED=DIR, or base=DIR$"):
        split_run(name)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", "is empty"),
        (json.dumps(STEP)[:-2], "is not JSON"),
        (json.dumps(STEP).replace("seconds_update", "update"), "lacks the field 'seconds_update'"),
        (json.dumps({"tokens": 1}), "lacks the field 'seconds_rollout'"),
    ],
)
def test_a_broken_training_log_is_refused(tmp_path, log, message):
    (tmp_path / "timing.json").write_text(json.dumps(TIMING))
    (tmp_path / "train.jsonl").write_text(log)
    with pytest.raises(UserError, match=rf"train\.jsonl.*{message}"):
        wallclock_row(tmp_path / "train.jsonl", tmp_path / "timing.json", run="m/0", dataset="d", model="m")


def test_a_timing_that_lacks_a_key_is_refused(tmp_path):
    (tmp_path / "timing.json").write_text(json.dumps({k: v for k, v in TIMING.items() if k != "threads"}))
    with pytest.raises(UserError, match=r"timing\.json cannot be read \(it lacks 'threads'\)"):
        wallclock_row(None, tmp_path / "timing.json", run="base", dataset="d", model="m")


def test_a_table_says_where_its_rows_differ_in_what_moves_the_last_digits():
    alike = {"engine": ["transformers"], "torch": ["2.13.0"]}
    rows = [replace(make_row(name), environment=alike) for name in ("base", "iapo")]
    assert differing_environments(rows) == []
    rows[1] = replace(rows[1], environment={**alike, "torch": ["2.12.0", "2.13.0"]})
    assert differing_environments(rows) == ["The rows differ in torch (base: 2.13.0; iapo: 2.12.0, 2.13.0)."]
