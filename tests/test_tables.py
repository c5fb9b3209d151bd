"""The tables: columns, markdown, wall-clock rows, and files written whole or not at all."""

import json

import pandas as pd
import pytest

from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Cell, Summary
from iapo_bench.report import wallclock
from iapo_bench.report.rows import Row, read_rows, split_run
from iapo_bench.report.table1 import table_frame, table_markdown, write_table
from iapo_bench.report.wallclock import wallclock_row, write_wallclock
from iapo_bench.train.trainer import PHASES

PUBLISHED_COLUMNS = [
    *("model", "dataset", "method"),
    *("pass@16", "pass@16_std", "pass@32", "pass@32_std"),
    *("length@16", "length@16_std", "length@32", "length@32_std"),
    *("ratio@16", "ratio@32"),
]


def make_row(method="iapo", ks=(2, 16), accuracy=0.5, length=40.0, half=0.01, **changes) -> Row:
    """A row whose pass and length intervals are `half` (relative) wide on either side."""
    cells = {}
    for k in ks:
        for measure, mean in (("pass", accuracy), ("length", length), ("ratio", accuracy / length)):
            cells[f"{measure}@{k}"] = Cell(mean, mean / 100, mean * (1 - half), mean * (1 + half))
    labels = {"model": "small", "dataset": "micro", "tier": "micro", "profile": "paper", "selection": "validation"}
    own = {key: changes.pop(key) for key in list(changes) if key in labels}
    summary = {
        "n_problems": 200,
        "n_samples": 32,
        "train_seeds": [0, 1],
        "sampling_seeds": [42, 142],
        "estimator": "unbiased",
        "accuracy": accuracy,
        "outcomes": {"CORRECT": 1200, "WRONG": 33, "UNPARSEABLE": 44, "TIMEOUT": 5, "ERROR": 6},
        "truncated": 0.031,
    }
    return Row(method=method, summary=Summary(cells=cells, **(summary | changes)), **(labels | own))


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
    ]


def test_values_order_and_missing_ks(tmp_path):
    rows = [make_row("base"), make_row("zeta", ks=(16,)), make_row("alpha", accuracy=2 / 3)]
    write_table(rows, tmp_path / "table.csv", tmp_path / "table.md")
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
        path.write_text(json.dumps(row.to_dict()))
    assert read_rows(paths) == rows
    for content in ("{", "{}", json.dumps({**rows[0].to_dict(), "tier": 1})[:-30]):
        paths[1].write_text(content)
        with pytest.raises(UserError, match=r"iapo\.json: "):
            read_rows(paths)
    with pytest.raises(UserError, match=r"none\.json"):
        read_rows([tmp_path / "none.json"])


def test_markdown_cells_and_evidence():
    results, evidence = parse(table_markdown([make_row("iapo"), make_row("base", accuracy=0.4, length=60)]))[::2]
    assert list(results) == ["method", "Pass@2", "Pass@16", "Length@16", "Ratio@16"]
    assert results["Pass@2"] == "**0.500 [0.495, 0.505]**"
    assert results["Length@16"] == "**40.0 [39.6, 40.4]**"
    assert results["Ratio@16"] == "**0.0125 [0.0124, 0.0126]**"
    assert evidence["samples"] == "32"
    assert evidence["sampling seeds"] == "42 142"
    assert evidence["training seeds"] == "0 1"
    assert evidence["settings chosen by"] == "validation"
    assert (evidence["CORRECT"], evidence["ERROR"], evidence["truncated"]) == ("1,200", "6", "3.1%")


def test_only_a_separate_best_stands_alone_in_bold():
    def bold(*accuracies: float) -> list[bool]:
        rows = [make_row(f"m{i}", accuracy=accuracy, ks=(16,)) for i, accuracy in enumerate(accuracies)]
        return [cell["Pass@16"].startswith("**") for cell in parse(table_markdown(rows)) if "Pass@16" in cell]

    assert bold(0.3, 0.5, 0.4) == [False, True, False]
    assert bold(0.3, 0.5, 0.495) == [False, True, True]
    assert bold(0.5, 0.496, 0.495) == [False, False, False]
    assert bold(0.5) == [False]


def test_unlike_rows_are_not_set_against_each_other():
    rows = [make_row("a"), make_row("b", accuracy=0.9, n_problems=50), make_row("c"), make_row("d", model="large")]
    text = table_markdown(rows)
    assert text.count("## small on micro") == 2
    assert "## large on micro" in text
    assert "(50 problems;" in text
    assert "**0." not in text, "nothing here has a like to be better than"
    with pytest.raises(UserError, match="no k"):
        table_markdown([make_row("a", ks=(2,)), make_row("b", ks=(4,))])


def test_published_cells_stand_beside_matching_rows_only():
    line = ["small", "micro", "iapo", 0.8519, 0.0084, 0.8979, 0.0068, 150.37, 0.22, 150.15, 0.24, 0.00567, 0.00598]
    published = pd.DataFrame([line], columns=PUBLISHED_COLUMNS)
    ours, base = parse(table_markdown([make_row(), make_row("base")], published))[:2]
    assert ours["Pass@16, published"] == "0.8519 ± 0.0084"
    assert ours["Length@16, published"] == "150.37 ± 0.22"
    assert ours["Ratio@16, published"] == "0.00567"
    assert base["Pass@16, published"] == ""
    assert "Pass@2, published" not in ours
    for other in ({"model": "large"}, {"dataset": "gsm8k"}):
        assert ", published" not in table_markdown([make_row(**other)], published)


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
        write_table([make_row("base"), make_row()], tmp_path / f"{name}.csv", tmp_path / f"{name}.md")
    for suffix in ("csv", "md"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    csv, markdown = tmp_path / "table.csv", tmp_path / "table.md"
    with pytest.raises(UserError, match="no summaries"):
        write_table([], csv, markdown)
    assert not list(tmp_path.iterdir())
    csv.write_text("old")

    def break_off(frame, path, **_):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", break_off)
    with pytest.raises(OSError, match="disk full"):
        write_table([make_row()], csv, markdown)
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
    labels = {"dataset": "micro", "model": "small"}
    rows = [wallclock_row(path, timing, run=name, **labels) for path, name in ((None, "base"), (log, "iapo/3"))]
    write_wallclock(rows, tmp_path / "wallclock.csv")
    frame = pd.read_csv(tmp_path / "wallclock.csv")
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
        ("", "holds no steps"),
        (json.dumps(STEP)[:-2], "cannot be read"),
        (json.dumps(STEP).replace("seconds_update", "update"), "without 'seconds_update'"),
        (json.dumps({"tokens": 1}), "without 'seconds_rollout'"),
    ],
)
def test_a_broken_training_log_is_refused(tmp_path, log, message):
    (tmp_path / "timing.json").write_text(json.dumps(TIMING))
    (tmp_path / "train.jsonl").write_text(log)
    with pytest.raises(UserError, match=rf"train\.jsonl.*{message}"):
        wallclock_row(tmp_path / "train.jsonl", tmp_path / "timing.json", run="m/0", dataset="d", model="m")


def test_a_timing_that_lacks_a_key_is_refused(tmp_path):
    (tmp_path / "timing.json").write_text(json.dumps({k: v for k, v in TIMING.items() if k != "threads"}))
    with pytest.raises(UserError, match=r"timing\.json: a timing without 'threads'"):
        wallclock_row(None, tmp_path / "timing.json", run="base", dataset="d", model="m")
