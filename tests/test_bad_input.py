"""Files that are damaged in thousands of ways are read, or refused in one line that names the file."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_verify import make_results

from iapo_bench.cli.options import read_job
from iapo_bench.config.evaluate import SampleJob
from iapo_bench.config.reading import CONFIG_DIR
from iapo_bench.config.report import Labels
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Tally, read_grades, summarise
from iapo_bench.files import read_csv, read_json, read_jsonl, read_parquet, write_json
from iapo_bench.models.checkpoints import build_micro, load_model, load_tokenizer, save_model
from iapo_bench.plan.calibration import COLUMNS, read_runs
from iapo_bench.report.claims import make_claims
from iapo_bench.report.comparisons import make_comparisons
from iapo_bench.report.explain import explain
from iapo_bench.report.lm_eval import make_lm_eval_table
from iapo_bench.report.page import make_page
from iapo_bench.report.rows import read_published, read_rows
from iapo_bench.report.side_by_side import compare
from iapo_bench.report.verify import Margins, verify
from iapo_bench.watch import watch
from iapo_bench.worlds import Problem, read_problems, write_problems
from iapo_bench.worlds.datasets.micro import build_tokenizer
from iapo_bench.worlds.grading import read_gradable

LABELS = Labels(model="m", dataset="micro", tier="micro")
NASTY = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\r", b"\n\n", b"\t", b" ", b"{", b"}", b"[", b"]", b":"),
    *(b"nan", b"NaN", b"-Infinity", b".inf", b"1e999", b"-1", b"0", b"null", b"true", b'""', b"'", b'"', b"#", b"!!"),
    *(b"9" * 5000, b"[" * 100_000, b"{a: " * 2000, b'"\\ud800"', b"!!int ''", b"!!timestamp x", b"!!bool maybe"),
    *(
        b"&a [*a]",
        b"*gone",
        b"<<: 3",
        b"? [1]\n: 2",
        b"%YAML 9",
        b"---\n",
        b"0x",
        b"1:60:99",
        b"2020-99-99",
        b"!!set x",
    ),
]
SEEDED = {"derandomize": True, "database": None, "deadline": None}
SEEDED["suppress_health_check"] = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@st.composite
def damage(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """A file after one to three accidents: cut short, bits flipped, pieces lost, doubled or replaced."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 2, 7, 40, 400])))
        kind = draw(st.sampled_from(["cut", "flip", "lose", "double", "replace"]))
        if kind == "cut":
            content = content[:start]
        elif kind == "flip" and content:
            place = min(start, len(content) - 1)
            content = content[:place] + bytes([content[place] ^ 1 << draw(st.integers(0, 7))]) + content[place + 1 :]
        else:
            middle = {"lose": b"", "double": content[start:end] * 2, "flip": b""}.get(kind)
            middle = draw(st.sampled_from(NASTY)) if middle is None else middle
            content = content[:start] + middle + content[end:]
    return content


def complaint(read: Callable[[], Any], otherwise: str) -> str:
    """What a reader says for the user; any other error is the test's failure."""
    try:
        read()
    except UserError as error:
        return str(error)
    return otherwise


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """One whole file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    write_problems(folder / "problems.jsonl", [Problem(f"p{i}", f"{i} + 1 = ?", str(i + 1)) for i in range(5)])
    (folder / "tier.yaml").write_bytes((CONFIG_DIR / "smoke.yaml").read_bytes())
    write_json(folder / "object.json", {"a": [1, 2.5, None], "b": {"c": "\u00e9"}})
    (folder / "table.csv").write_text("method,value\ngrpo,1.5\niapo,2\n")
    job = read_tier("smoke").sample_job("test").model_dump(mode="json")
    write_json(folder / "job.yaml", {"name": "sample", "job": job, "identity": {}})
    rows = [(f"p{i}", s, 42, 3, "CORRECT", "stop", True, "CORRECT") for i in range(5) for s in range(2)]
    names = ["problem_id", "sample", "seed", "n_tokens", "outcome", "finish_reason", "formatted", "outcome_lenient"]
    pd.DataFrame(rows, columns=names).to_parquet(folder / "grades.parquet", index=False)
    counts = {"n_samples": 2, "correct": 1, "tokens": 6}
    keys = [{"train_seed": 0, "seed": 42, "problem_id": f"p{i}"} for i in range(5)]
    pd.DataFrame([key | counts for key in keys]).to_parquet(folder / "counts.parquet", index=False)
    return folder


READERS: dict[str, Callable[[Path], Any]] = {
    "problems.jsonl": read_problems,
    "tier.yaml": read_tier,
    "object.json": read_json,
    "table.csv": lambda path: read_csv(path, {"method": str, "value": float}),
    "job.yaml": lambda path: read_job(path, SampleJob),
    "grades.parquet": read_grades,
    "counts.parquet": Tally.from_parquet,
}


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(whole, name):
    READERS[name](whole / name)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line_that_names_it(whole, tmp_path, name):
    content, path = (whole / name).read_bytes(), tmp_path / name

    @settings(max_examples=150, **SEEDED)
    @given(damage(content))
    def check(damaged: bytes) -> None:
        path.write_bytes(damaged)
        assert str(path) in complaint(lambda: READERS[name](path), otherwise=str(path))

    check()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A folder of results, and beside it the same once more."""
    folder = make_results(tmp_path_factory.mktemp("results") / "made", 0.2, train_seeds=(0, 1))
    summaries = [folder / "micro" / "summaries" / f"{name}.json" for name in ("base", "iapo")]
    make_comparisons(summaries, out=folder / "comparisons.csv", figure=folder / "figures" / "comparisons")
    shutil.copytree(folder, folder.with_name("reference"))
    return folder


def read_results(folder: Path) -> None:
    """Everything that is told of a folder of results."""
    runs = [folder / "micro" / "iapo" / f"seed{seed}" for seed in (0, 1)]
    explain(folder / "table1.csv", row="iapo", column="pass@8", against=None, problems=1, samples=1)
    verify(folder, folder.with_name("reference"), Margins(0, 0))
    verify(folder.with_name("reference"), folder, Margins(0, 0))
    compare(*runs, problem=None, samples=1, out=None)
    make_page(folder / "table1.csv", folder / "page.html")


RESULTS = (
    *("table1.csv", "table1.provenance.json", "comparisons.csv", "figures/comparisons.svg"),
    *("micro/summaries/iapo.json", "micro/summaries/iapo.parquet"),
    *("micro/iapo/seed0/provenance.json", "micro/iapo/seed0/test/grades.parquet"),
)


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """A file that others share holds afterwards what it held before."""
    content = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", RESULTS)
def test_damaged_results_are_told_of_or_refused_in_one_line_that_names_the_file(results, name):
    path = results / name
    content = path.read_bytes()
    read_results(results)

    @settings(max_examples=15, **SEEDED)
    @given(damage(content))
    def check(damaged: bytes) -> None:
        path.write_bytes(damaged)
        assert str(path) in complaint(lambda: read_results(results), otherwise=str(path))

    with restored(path):
        check()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table1.provenance.json", b'{"config": [1]}'),
        ("table1.provenance.json", b"[]"),
        ("micro/iapo/seed0/provenance.json", b'{"code": [1]}'),
        ("micro/summaries/iapo.json", b"{}"),
        ("table1.csv", b"model,dataset,method\nm,micro,iapo\n"),
        ("comparisons.csv", b"model\nm\n"),
    ],
)
def test_results_of_another_shape_are_refused(results, name, content):
    path = results / name
    with restored(path):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_results(results)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [
        ("grades", "seed", "x", "column 'seed' is not a whole number"),
        ("grades", "sample", None, "column 'sample' is not a whole number"),
        ("grades", "outcome", ["CORRECT"], "column 'outcome' is not text"),
        ("grades", "outcome", "RIGHT", "unknown outcome 'RIGHT'"),
        ("grades", "problem_id", {"a": 1}, "column 'problem_id' is not text"),
        ("grades", "formatted", "yes", "column 'formatted' is not true or false"),
        ("counts", "correct", "1", "column 'correct' is not a whole number"),
        ("counts", "correct", 2**40, "'correct' is not a valid count for 2 samples"),
        ("counts", "n_samples", 2**40, "not a valid count for"),
        ("counts", "problem_id", "p0", "rows must be every problem of every seed, in order"),
    ],
)
def test_a_column_of_another_kind_is_named(whole, tmp_path, name, column, value, said):
    path = tmp_path / f"{name}.parquet"
    frame = pd.read_parquet(whole / path.name)
    frame[column] = [value] * len(frame) if value is not None else [None, *frame[column][1:]]
    frame.to_parquet(path, index=False)
    read = Tally.from_parquet if name == "counts" else lambda path: summarise({0: read_grades(path)}, [1])
    with pytest.raises(UserError, match=re.escape(said)) as error:
        read(path)
    assert str(path) in str(error.value)


def test_counts_in_another_order_are_refused(whole, tmp_path):
    """They would be taken for those of other problems."""
    path = tmp_path / "counts.parquet"
    frame = pd.read_parquet(whole / "counts.parquet").assign(train_seed=0)
    other = frame.assign(train_seed=1).iloc[::-1]
    pd.concat([frame, other]).to_parquet(path, index=False)
    with pytest.raises(UserError, match="rows must be every problem of every seed, in order"):
        Tally.from_parquet(path)


TOLD: dict[str, Callable[[Path], Any]] = {
    "iapo.json": lambda path: read_rows([path]),
    "lm_eval/scores.json": lambda path: make_lm_eval_table(LABELS, {"base": path.parent.parent}, path),
    "planned/iapo/seed0/train.jsonl": lambda path: read_runs(path, read_tier("micro")),
    "watched/train.jsonl": lambda path: watch([path], once=True),
    "test.jsonl": lambda path: read_gradable(path, "digits"),
}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("iapo.json", {"environment": {"torch": 1.5}}),
        ("iapo.json", {"cells": {"pass@1": {"mean": [], "std": 0, "lo": 0, "hi": 1}}}),
        ("lm_eval/scores.json", {"scores": [{"task": 1}]}),
        ("planned/iapo/seed0/train.jsonl", {"tokens": {}}),
        ("watched/train.jsonl", {"completions_total": "x"}),
        ("test.jsonl", {"answer": "one"}),
    ],
)
def test_a_field_of_another_kind_is_named(results, tmp_path, name, change):
    steps = dict.fromkeys(("step", "completions_total", *COLUMNS), 1)
    wholes = {
        "iapo.json": json.loads((results / "micro" / "summaries" / "iapo.json").read_text()),
        "lm_eval/scores.json": {"backend": "hf", "versions": "", "scores": []},
        "planned/iapo/seed0/train.jsonl": steps,
        "watched/train.jsonl": steps,
        "test.jsonl": {"id": "a", "question": "q", "answer": "1"},
    }
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(results / "micro" / "summaries" / "iapo.parquet", tmp_path)
    path.write_text(json.dumps(wholes[name] | change) + "\n")
    assert str(path) in complaint(lambda: TOLD[name](path), otherwise="it is read")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    tokenizer = build_tokenizer()
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_model(build_micro(tokenizer, hidden=16, layers=1, heads=2, seed=0), tokenizer, folder)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_damaged_checkpoint_is_read_or_refused_in_one_line_that_names_it(checkpoint, name):
    path = checkpoint / name
    content = path.read_bytes()
    # What is told of the weights stands in front of them.
    head = content[:2000] if name.endswith(".safetensors") else content

    @settings(max_examples=25, **SEEDED)
    @given(damage(head))
    def check(damaged: bytes) -> None:
        path.write_bytes(damaged + content[len(head) :])
        assert str(checkpoint) in complaint(lambda: load_tokenizer(checkpoint), otherwise=str(checkpoint))
        assert str(checkpoint) in complaint(lambda: load_model(checkpoint), otherwise=str(checkpoint))

    with restored(path):
        check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"id": "a", "question": "q", "answer": "1"}\n{"id": "a", "question": "r", "answer": "2"}\n',
            ":2: duplicate id 'a', also at line 1",
        ),
        (b'{"id": "a", "question": "q", "answer": 1}\n', ":1: the field 'answer' is not text"),
        (b'{"id": "a", "question": "\\ud800", "answer": "1"}\n', ":1: a string contains a lone surrogate"),
        (b'{"id": "a", "question": "q", "answer": "1"}\n\xff\n', ":2 is not UTF-8 text"),
        (b'{"id": "a", "question": "q", "answer": "1", "level": NaN}\n', ":1 is not JSON (NaN is not a finite number)"),
        (b'{"id": "a", "question": "q", "answer": "1", "level": 1e999}\n', ":1 is not JSON (1e999 is not"),
        (b'{"id": ' + b"[" * 100_000, ":1 is not JSON (nested too deeply)"),
        (b'{"id": ' + b"9" * 5000 + b"}", ":1 is not JSON (Exceeds the limit"),
        (b"", " is empty"),
    ],
)
def test_problems_that_are_refused(tmp_path, content, message):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_problems(path)
    assert f"{path}{message}" in str(error.value)


def test_a_byte_order_mark_and_further_fields_are_no_mistake(tmp_path):
    path = tmp_path / "problems.jsonl"
    row = {"id": "a", "question": "q", "answer": "1", "level": 3}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n")
    assert read_problems(path) == [Problem("a", "q", "1")]
    assert read_jsonl(path, ("level",)) == [row]


PUBLISHED = CONFIG_DIR.parent / "results" / "published"
REPORTED = ("published.csv", "second_hand.csv", "wallclock.csv", "bench.csv")


@pytest.fixture(scope="module")
def reported(results, tmp_path_factory) -> Path:
    """One whole file of each that the ledger of claims reads, of a model that is published."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copy(PUBLISHED / "table1.csv", folder / "published.csv")
    shutil.copy(PUBLISHED / "second_hand.csv", folder)
    shutil.copy(PUBLISHED.parent / "reference" / "bench" / "informativeness_micro.csv", folder / "bench.csv")
    (row,) = read_rows([results / "micro" / "summaries" / "iapo.json"])
    times = {"model": row.model, "dataset": row.dataset, "inference_seconds": 2.5, "inference_completions": 8}
    pd.DataFrame([{"method": name} | times for name in ("iapo", "dapo")]).to_csv(folder / "wallclock.csv", index=False)
    return folder


@pytest.mark.parametrize("change", ["left out", "text", "empty"])
@pytest.mark.parametrize("name", REPORTED)
def test_a_column_of_a_table_that_is_missing_or_of_another_kind_is_named(results, reported, tmp_path, name, change):
    paths = {each: reported / each for each in REPORTED} | {name: tmp_path / name}

    def claims() -> None:
        make_claims(
            CONFIG_DIR / "claims.yaml",
            published=paths["published.csv"],
            second_hand=paths["second_hand.csv"],
            summaries=[results / "micro" / "summaries" / "iapo.json"],
            wallclocks=[paths["wallclock.csv"]],
            bench=paths["bench.csv"],
            out=tmp_path / "claims.csv",
        )

    whole = pd.read_csv(reported / name)
    for column in whole:
        other = (
            whole.drop(columns=column) if change == "left out" else whole.assign(**{column: "x" * (change == "text")})
        )
        other.to_csv(paths[name], index=False)
        assert str(paths[name]) in complaint(claims, otherwise=f"{paths[name]}: it is read"), column


def test_published_numbers_without_their_deviation_are_refused(tmp_path):
    path = tmp_path / "published.csv"
    pd.read_csv(PUBLISHED / "table1.csv").drop(columns="length@32_std").to_csv(path, index=False)
    with pytest.raises(UserError, match=f"{path} has no column 'length@32_std'"):
        read_published(path)


def test_a_column_that_is_missing_is_named(whole):
    with pytest.raises(UserError, match=r"grades.parquet has no column 'text': sample first"):
        read_parquet(whole / "grades.parquet", {"problem_id": str, "text": str}, "sample first")
