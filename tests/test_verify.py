"""Whether another run gives the same answer, and the archives by which others can tell."""

import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from test_metrics import grades
from test_tables import make_row

from iapo_bench.cli import cli
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Samples
from iapo_bench.report.results import bundle, open_results
from iapo_bench.report.rows import read_rows
from iapo_bench.report.table1 import make_table
from iapo_bench.report.verify import (
    NOT,
    ONE_SEED,
    REPRODUCED,
    WITHIN,
    Margins,
    exit_status,
    report,
    surroundings,
    verify,
)

PROBLEMS, SAMPLES = 40, 8


def chances(seed=0):
    return np.random.default_rng(seed).beta(1, 1, (PROBLEMS, 1))


def make_results(root, shift=0.0, *, draw=0, train_seeds=(0,), settings=None, spread=0.0):
    """A folder of results of the base and iapo; iapo is right by `shift` more often than chance says."""
    generator = np.random.default_rng([draw, 7])
    paths = []
    for name, seeds, more, apart in (("base", (0,), 0.0, 0.0), ("iapo", train_seeds, shift, spread)):
        runs = {}
        for seed in seeds:
            moved = np.clip(chances() + more + apart * generator.standard_normal(), 0, 1)
            correct = generator.random((2, PROBLEMS, SAMPLES)) < moved
            tokens = 30 + 10 * (np.arange(PROBLEMS)[:, None] % 3) + generator.integers(0, 5, correct.shape)
            text = [f"<answer> {i} \x1b[31m </answer>" for i in range(correct.size)]
            frame = grades(correct, tokens, seeds=(42, 142), text=text, gold="7", answer="7")
            runs[seed] = frame
            run = root / "micro" / (name if name == "base" else f"iapo/seed{seed}")
            (run / "test").mkdir(parents=True, exist_ok=True)
            frame.to_parquet(run / "test" / "grades.parquet")
            (run / "provenance.json").write_text(json.dumps({"code": {"git": "abc", "dirty": False}, "threads": 2}))
        samples = Samples.of(runs)
        row = replace(
            make_row(name, (1, 8), train_seeds=list(seeds)),
            summary=samples.summary([1, 8]),
            tally=samples.tally(),
            settings=settings or {"train": {"lr": 0.1}},
        )
        paths.append(root / "micro" / "summaries" / f"{name}.json")
        row.write(paths[-1])
    make_table(paths, published=None, out=root / "table1.csv", figure=root / "figures" / "accuracy_length")
    return root


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("reference"), 0.2)


def test_a_result_reproduces_itself_and_its_bundle(reference, tmp_path):
    names = bundle(reference, tmp_path / "a.tar.gz")
    bundle(reference / "table1.csv", tmp_path / "b.tgz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tgz").read_bytes(), "equal files, equal archives"
    assert {"table1.csv", "table1.provenance.json", "summaries/iapo.parquet"} <= set(names)
    assert "iapo/seed0/test/grades.parquet" in names
    cells = verify(reference, tmp_path / "a.tar.gz", Margins(0, 0))
    assert set(cells["verdict"]) == {REPRODUCED}
    assert len(cells) == 2 * 6
    assert exit_status(cells) == 0
    assert report(cells, Margins()).startswith("12 cells: 12 reproduced, 0 within seed variation, 0 not reproduced")


def test_a_folder_small_enough_for_a_repository_is_a_reference(reference, tmp_path, run):
    kept = tmp_path / "reference"
    (kept / "summaries").mkdir(parents=True)
    (kept / "summaries" / "gone.json").write_text("{}")
    names = bundle(reference, kept)
    assert {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()} == set(names)
    assert {"table1.csv", "table1.provenance.json", "summaries/iapo.parquet", "iapo/seed0/provenance.json"} <= set(
        names
    )
    assert not [name for name in names if name.endswith("grades.parquet")]
    assert (
        verify(reference, kept, Margins(0, 0))["lo"].tolist() == verify(reference, reference, Margins())["lo"].tolist()
    )
    assert run("bundle", kept, "--out", tmp_path / "again.tar.gz")[0] == 0
    assert set(verify(tmp_path / "again.tar.gz", reference, Margins(0, 0))["verdict"]) == {REPRODUCED}
    for out in (reference, reference / "micro", kept / "table1.csv", tmp_path / "x.zip"):
        with pytest.raises(UserError, match=r"ends in \.tar\.gz, or a folder beside"):
            bundle(reference, out)


def test_a_setting_that_is_newer_than_a_reference_had_its_default_there(tmp_path):
    old, same, other = (
        make_results(tmp_path / name, settings={"train": {"lr": 0.1}, "evaluate": {"top_p": 1.0, **new}})
        for name, new in (
            ("old", {}),
            ("same", {"engine_deterministic": False}),
            ("other", {"engine_deterministic": True}),
        )
    )
    assert set(verify(same, old, Margins(0, 0))["verdict"]) == {REPRODUCED}
    with pytest.raises(UserError, match=r"evaluate\.engine_deterministic True against False"):
        verify(other, old, Margins())


def test_what_a_reference_says_beside_what_counts_is_no_difference(tmp_path):
    """Other sections have defaults too, and a setting that cannot change a result may once have been recorded."""
    old = {"train": {"lr": 0.1}, "model": {"source": "shipped", "name": "a"}, "world": {"name": "micro"}}
    new = {**old, "model": {"source": "shipped"}, "world": {"name": "micro", "golds": None, "options": {}}}
    found = [make_results(tmp_path / name, settings=told) for name, told in (("old", old), ("new", new))]
    assert exit_status(verify(*reversed(found), Margins())) == 0
    other = make_results(tmp_path / "other", settings={**new, "world": {"name": "micro", "golds": "mine.csv"}})
    with pytest.raises(UserError, match=r"world\.golds mine\.csv against None"):
        verify(other, found[0], Margins())


def test_another_processor_is_within_seed_variation(tmp_path):
    """Rounding is amplified by training as another seed is: weights move, the settings and training seeds do not."""
    found = []
    for draw in range(3):
        folders = [tmp_path / f"{draw}{side}" for side in "ab"]
        for side, folder in enumerate(folders):
            make_results(folder, 0.1, draw=10 * draw + side, train_seeds=(0, 1, 2), spread=0.05)
        found.append(exit_status(verify(*folders, Margins(0.001, 0.001))))
    assert found == [0, 0, 0]


def test_what_may_have_moved_a_result_is_said(tmp_path):
    seeds = {"a": (0,), "b": (0,), "c": (0, 1)}
    folders = [make_results(tmp_path / name, -0.3, train_seeds=own) for name, own in seeds.items()]
    for folder, instructions in zip(folders, ("AVX2", "AVX512", "AVX2"), strict=True):
        for path in (folder / "micro" / "summaries").glob("*.json"):
            told = json.loads(path.read_text()) | {"environment": {"instruction_set": [instructions], "torch": ["2"]}}
            path.write_text(json.dumps(told))
    assert surroundings(folders[0], folders[1]).splitlines() == ["instruction set: AVX2 against AVX512", ONE_SEED]
    assert surroundings(folders[0], folders[2]) == ""


def test_two_makers_of_processors_agree_as_the_page_says_and_are_named():
    kept = Path(__file__).parents[1] / "results" / "reference"
    done = CliRunner().invoke(cli, ["verify", str(kept / "micro-intel"), "--against", str(kept / "micro")])
    assert done.exit_code == 0
    said = done.output
    cells, same, within, beyond = re.match(r"(\d+) cells: (\d+) \D+, (\d+) \D+, (\d+) not", said).groups()
    page = (kept.parents[1] / "docs" / "results.md").read_text()
    assert f"{same} of the {cells} cells came within the margin, {within} within what training\nseeds" in page
    assert (beyond, "and none beyond" in page) == ("0", True)
    assert re.search(r"^hardware: Intel.* against AMD", said, re.MULTILINE)


def test_the_cause_is_said_of_cells_within_variation_too(tmp_path):
    folders = [make_results(tmp_path / str(draw), 0.2, draw=draw, train_seeds=(0, 1)) for draw in (0, 1)]
    for folder, hardware in zip(folders, ("AMD", "Intel"), strict=True):
        for path in (folder / "micro" / "summaries").glob("*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"environment": {"hardware": [hardware]}}))
    said = {
        against: CliRunner().invoke(cli, ["verify", str(folders[0]), "--against", str(against)]) for against in folders
    }
    assert [told.exit_code for told in said.values()] == [0, 0]
    assert ["hardware: AMD against Intel" in told.output for told in said.values()] == [False, True]


def test_another_draw_is_within_variation_and_another_method_is_not(reference, tmp_path):
    again = verify(make_results(tmp_path / "again", 0.2, draw=1), reference, Margins(0.001, 0.001))
    assert set(again["verdict"]) <= {REPRODUCED, WITHIN}
    assert WITHIN in set(again["verdict"])
    assert exit_status(again) == 0
    wide = verify(tmp_path / "again", reference, Margins(0.5, 0.9))
    assert set(wide["verdict"]) == {REPRODUCED}
    other = verify(make_results(tmp_path / "other", 0.0, draw=1), reference, Margins())
    found = other.set_index(["row", "cell"])["verdict"]
    assert found["iapo", "pass@1"] == NOT
    assert found["base", "pass@1"] != NOT
    assert exit_status(other) == 1
    assert "| iapo" in report(other, Margins())


def test_training_seeds_of_one_side_stand_for_the_others(tmp_path):
    """A single seed is off by more than problems explain, and by no more than three seeds differ among themselves."""
    several = make_results(tmp_path / "several", 0.0, train_seeds=(0, 1, 2), spread=0.15)
    single = make_results(tmp_path / "single", 0.1, draw=3)
    found = verify(single, several, Margins(0.001, 0.001)).set_index(["row", "cell"])
    assert found.loc[("iapo", "pass@1"), "verdict"] == WITHIN
    alone = verify(single, make_results(tmp_path / "alone", -0.1, draw=4), Margins()).set_index(["row", "cell"])
    assert alone.loc[("iapo", "pass@1"), "verdict"] == NOT


def test_tables_without_counts_are_compared_by_their_intervals(reference, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("table1.csv", "table1.provenance.json"):
            shutil.copy(reference / file, tmp_path / name / file)
    table = pd.read_csv(tmp_path / "b" / "table1.csv")
    table["pass@1"] += 0.4
    table.to_csv(tmp_path / "b" / "table1.csv", index=False)
    assert set(verify(tmp_path / "a", reference, Margins())["verdict"]) == {REPRODUCED}
    found = verify(tmp_path / "b", tmp_path / "a", Margins()).set_index(["row", "cell"])["verdict"]
    assert (found["iapo", "pass@1"], found["iapo", "length@1"]) == (NOT, REPRODUCED)


def test_other_settings_are_refused_and_named(reference, tmp_path):
    other = make_results(tmp_path / "other", 0.2, settings={"train": {"lr": 0.3, "seeds": [1]}})
    with pytest.raises(UserError, match=r"train\.lr 0\.3 against 0\.1 \(base, iapo\)"):
        verify(other, reference, Margins())
    fewer = make_results(tmp_path / "fewer", 0.2)
    table = pd.read_csv(fewer / "table1.csv")
    table[table["method"] == "base"].assign(n_problems=7).to_csv(fewer / "table1.csv", index=False)
    with pytest.raises(UserError, match=r"rows that are missing: iapo; base: n_problems 7 against 40"):
        verify(fewer, reference, Margins())


def edited(results, folder, **cells):
    """A copy of results with other cells of iapo in its table."""
    shutil.copytree(results, folder)
    table = pd.read_csv(folder / "table1.csv")
    for cell, value in cells.items():
        table.loc[table["method"] == "iapo", cell.replace("_at_", "@")] = value
    table.to_csv(folder / "table1.csv", index=False)
    return folder


def test_a_table_that_is_not_what_its_counts_come_to_is_not_reproduced(reference, tmp_path):
    other = edited(reference, tmp_path / "other", pass_at_1=0.99)
    for sides in ((other, reference), (reference, other), (other, other)):
        cells = verify(*sides, Margins())
        found = cells.set_index(["row", "cell"])["verdict"]
        assert (found["iapo", "pass@1"], found["iapo", "pass@8"]) == (NOT, REPRODUCED)
        assert exit_status(cells) == 1
        odd = cells[~cells["as_counted"]].iloc[0]
        assert odd["difference"] == odd["value"] - odd["reference"]
        assert report(cells, Margins()).endswith("not what its counts by problem come to: iapo pass@1")


def test_an_interval_that_is_not_what_its_counts_come_to_is_not_reproduced(reference, tmp_path):
    cells = verify(edited(reference, tmp_path / "other", **{"pass@8_lo": 0.01}), reference, Margins())
    assert cells[~cells["as_counted"]][["row", "cell", "verdict"]].to_numpy().tolist() == [["iapo", "pass@8", NOT]]


def test_a_row_that_alone_lacks_its_counts_is_refused(reference, tmp_path):
    other = edited(reference, tmp_path / "other", pass_at_1=0.99)
    (other / "micro" / "summaries" / "iapo.json").unlink()
    with pytest.raises(UserError, match="counts by problem that are missing: iapo"):
        verify(other, reference, Margins())


def test_other_problems_are_refused(reference, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(reference, other)
    path = other / "micro" / "summaries" / "iapo.parquet"
    counts = pd.read_parquet(path)
    counts.assign(problem_id="q" + counts["problem_id"]).to_parquet(path)
    with pytest.raises(UserError, match="other problems: iapo: nothing was compared"):
        verify(other, reference, Margins())


def test_cells_on_other_datasets_count_too(reference, tmp_path):
    results, paths = tmp_path / "results", []
    shutil.copytree(reference, results)
    for name in ("base", "iapo"):
        paths.append(results / "micro" / "summaries" / f"{name}.json")
        (row,) = read_rows(paths[-1:])
        paths.append(results / "micro" / "summaries" / "also" / "math500" / f"{name}.json")
        replace(row, dataset="math500").write(paths[-1])
    make_table(paths[::2] + paths[1::2], published=None, out=results / "table1.csv", figure=results / "figures" / "x")
    bundle(results, tmp_path / "kept")
    cells = verify(tmp_path / "kept", results, Margins(0, 0))
    assert (len(cells), set(cells["verdict"]), exit_status(cells)) == (2 * 12, {REPRODUCED}, 0)
    with pytest.raises(UserError, match="rows that are missing on math500: base, iapo"):
        verify(reference, results, Margins())
    table = pd.read_csv(results / "table1.csv")
    table.loc[3, "pass@1"] += 0.2
    table.to_csv(results / "table1.csv", index=False)
    odd = verify(results, tmp_path / "kept", Margins()).query("not as_counted")
    assert odd[["row", "cell", "verdict"]].to_numpy().tolist() == [["iapo on math500", "pass@1", NOT]]


@pytest.mark.parametrize("where", [{"world": {"options": {"seed": 5}}}, {"model": {"sft": {"seed": 5}}}])
def test_a_seed_of_the_splits_or_of_the_base_is_a_setting(reference, tmp_path, where):
    other = make_results(tmp_path / "other", 0.2, settings={"train": {"lr": 0.1}, **where})
    with pytest.raises(UserError, match=r"\.seed 5 against "):
        verify(other, reference, Margins())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cell_that_only_the_reference_has_is_refused_and_named(reference, tmp_path, value):
    fewer = edited(reference, tmp_path / "fewer", pass_at_8=value)
    with pytest.raises(UserError, match=r"cells that are missing: iapo pass@8"):
        verify(fewer, reference, Margins())
    pd.read_csv(fewer / "table1.csv").drop(columns="length@8").to_csv(fewer / "table1.csv", index=False)
    with pytest.raises(UserError, match=r"missing: base length@8; cells that are missing: iapo pass@8, length@8"):
        verify(fewer, reference, Margins())


def test_one_problem_is_reproduced_by_equal_cells_alone(reference, tmp_path):
    """Without an interval nothing is known of a difference."""
    nothing = {f"pass@1_{end}": np.nan for end in ("lo", "hi")}
    alone = [edited(reference, tmp_path / str(i), **nothing, **{"pass@1": 0.5 + i / 4}) for i in range(2)]
    for folder in alone:
        shutil.rmtree(folder / "micro")
    found = [verify(folder, alone[0], Margins(1, 1)).set_index(["row", "cell"])["verdict"] for folder in alone]
    assert [verdicts["iapo", "pass@1"] for verdicts in found] == [REPRODUCED, NOT]


def test_a_row_that_is_there_twice_is_refused(reference, tmp_path):
    twice = edited(reference, tmp_path / "twice", method="base")
    with pytest.raises(UserError, match="more than one row 'base'"):
        verify(reference, twice, Margins())


def test_an_archive_with_a_flipped_byte_is_refused(reference, tmp_path):
    path = tmp_path / "a.tar.gz"
    bundle(reference, path)
    content = path.read_bytes()
    for place in range(20, len(content), len(content) // 12):
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        with (
            pytest.raises(UserError, match=r"a\.tar\.gz cannot be read .*fetch or bundle it again"),
            open_results(path),
        ):
            pass


@pytest.mark.parametrize("name", ["../out.csv", "/out.csv", "link"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path, name):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = (tarfile.SYMTYPE, "/etc") if name == "link" else (tarfile.REGTYPE, "")
        archive.addfile(member)
    with pytest.raises(UserError, match=f"cannot be read .*{name} is not a file inside"), open_results(path):
        pass


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08\x00junk"])
def test_what_is_no_result_is_refused(tmp_path, content):
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"), open_results(tmp_path / "x.tar.gz"):
        pass
    with pytest.raises(UserError, match=r"holds no table1\.csv"), open_results(tmp_path):
        pass
    (tmp_path / "table1.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"table1\.csv.*(no column|cannot be read|UTF-8)"), open_results(tmp_path):
        pass


def test_verify_says_it_with_its_exit_status(run, reference, tmp_path):
    make_results(tmp_path / "other", -0.3, draw=1)
    assert run("verify", reference, "--against", reference)[0] == 0
    assert run("verify", tmp_path / "other", "--against", reference, "--out", tmp_path / "cells.csv")[0] == 1
    assert NOT in set(pd.read_csv(tmp_path / "cells.csv")["verdict"])
    code, message = run("verify", tmp_path / "nothing", "--against", reference)
    assert (code, message.count("\n")) == (2, 1)
