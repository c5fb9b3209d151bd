# ruff: noqa: F811
"""From a cell to its samples, and two runs side by side."""

import shutil

import numpy as np
import pandas as pd
import pytest
from test_verify import PROBLEMS, edited, reference  # noqa: F401

from iapo_bench.errors import UserError
from iapo_bench.report.explain import explain, plain
from iapo_bench.report.results import bundle
from iapo_bench.report.side_by_side import compare as set_beside
from iapo_bench.worlds import Problem, write_problems


def test_a_cell_leads_to_its_samples(reference):
    text = explain(reference / "table1.csv", row="iapo", column="pass@8", against=None, problems=2, samples=1)
    table = pd.read_csv(reference / "table1.csv").set_index("method")
    assert text.startswith(f"iapo, pass@8: {table.loc['iapo', 'pass@8']:.6g} [")
    for found in ("40 problems x 8 samples, training seeds 0", "revision: abc", "threads: 2", "instruction set: "):
        assert found in text
    assert f"{reference / 'micro' / 'iapo' / 'seed0' / 'test' / 'grades.parquet'}" in text
    assert "micro/summaries/iapo.json (SHA-256 " in text.replace(str(reference) + "/", "")
    assert "gold 7" in text
    assert "\x1b" not in text, "nothing in a sample may command the terminal"
    frames = [pd.read_parquet(path) for path in sorted((reference / "micro").rglob("grades.parquet"))]
    shares = [(frame["outcome"] == "CORRECT").groupby(frame["problem_id"]).mean() for frame in frames]
    most = (shares[0] - shares[1]).abs().max()
    first = next(line.split(",")[0] for line in text.splitlines() if line.startswith("p0"))
    assert abs(shares[0][first] - shares[1][first]) == most
    shutil.copy(reference / "table1.csv", reference / "other.csv")
    shutil.copy(reference / "table1.provenance.json", reference / "other.provenance.json")
    again = explain(reference / "other.csv", row="iapo", column="pass@8", against=None, problems=2, samples=1)
    assert again == text, "any table of rows"
    bundle(reference, reference.with_name("kept"))
    bare = explain(reference.with_name("kept"), row="iapo", column="pass@8", against=None, problems=2, samples=1)
    assert bare.startswith(text.splitlines()[0])
    assert "No samples of iapo: " in bare
    with pytest.raises(UserError, match=r"nothing\.csv does not exist"):
        explain(reference / "nothing.csv", row="iapo", column="pass@8", against=None, problems=1, samples=1)
    with pytest.raises(UserError, match="did you mean 'iapo'"):
        explain(reference, row="iapa", column="pass@8", against=None, problems=1, samples=1)
    missing = edited(reference, reference.with_name("missing"), pass_at_8=np.nan)
    with pytest.raises(UserError, match=r"iapo has no pass@8, which was not measured with 8 samples"):
        explain(missing, row="iapo", column="pass@8", against=None, problems=1, samples=1)
    with pytest.raises(UserError, match=r"unknown column 'pass@9'"):
        explain(reference, row="iapo", column="pass@9", against=None, problems=1, samples=1)


def test_a_cell_leads_to_its_own_runs_alone_and_says_where_they_changed(reference, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(reference, results)
    ran = results / "micro" / "settings" / "ran"
    ran.mkdir(parents=True)
    for name in ("train--iapo-seed0", "grade--iapo-seed0--test", "train--iapo-seed01", "train--iapo-seed0b-seed0"):
        (ran / f"{name}.yaml").write_text("identity: {code: abc}\n")

    def lines() -> list[str]:
        text = explain(results, row="iapo", column="pass@8", against=None, problems=0, samples=1)
        return [line for line in text.splitlines() if "code digest" in line or "stale" in line]

    assert [line.split(",")[0].rpartition("/")[2] for line in lines()] == [
        "grade--iapo-seed0--test.yaml",
        "train--iapo-seed0.yaml",
    ]
    summary = results / "micro" / "summaries" / "iapo.json"
    summary.write_text(summary.read_text() + "\n")
    assert lines()[-1] == f"  stale: {summary} is another file by now: make the table again"


def test_grades_with_repeated_or_missing_rows_or_of_other_problems_are_not_shown(reference, tmp_path):
    runs = [reference / "micro" / "base", tmp_path / "grades.parquet"]
    frame = pd.read_parquet(runs[0] / "test" / "grades.parquet")
    for changed, said in (
        (pd.concat([frame, frame[:1]]), "more than once"),
        (frame[1:], "sample every problem"),
        (frame.assign(gold="8"), "samples of different problems"),
    ):
        changed.to_parquet(runs[1])
        with pytest.raises(UserError, match=said):
            set_beside(*runs, problem=None, samples=1, out=None)


def test_two_runs_side_by_side(reference, tmp_path):
    runs = [reference / "micro" / "iapo" / "seed0", reference / "micro" / "base" / "test" / "grades.parquet"]
    text = set_beside(*runs, problem="p0003", samples=2, out=tmp_path / "page.html")
    assert text.startswith("p0003, gold 7\n\n")
    problems = [Problem(f"p{i:04}", f"What is {i}?", "7") for i in range(PROBLEMS)]
    write_problems(reference / "micro" / "data" / "test.jsonl", problems)
    asked = set_beside(*runs, problem="p0003", samples=2, out=None)
    assert asked.startswith("p0003, gold 7\nWhat is 3?\n"), "the question, from the file of problems"
    assert text.count("sample 1: ") == 2
    assert "sample 2: " not in text, "two samples were asked for"
    page = (tmp_path / "page.html").read_text()
    assert "&lt;answer&gt;" in page
    assert "<answer>" not in page
    assert "http" not in page, "refers to nothing outside it"
    assert "\x1b" not in page + text
    with pytest.raises(UserError, match="unknown problem 'p9999'"):
        set_beside(*runs, problem="p9999", samples=1, out=None)
    with pytest.raises(UserError, match="neither a file of grades"):
        set_beside(runs[0], tmp_path, problem=None, samples=1, out=None)


def test_control_characters_are_shown():
    assert plain("a\x1b[2J\x07\nb\x9b") == "a\u241b[2J\u2407\nb\ufffd"
