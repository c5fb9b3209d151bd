"""What makes a job stale: settings that change its result, and contents of files, not their paths; and nothing else."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from iapo_bench import staleness, workflow
from iapo_bench.cli.options import note_ran
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.machine.code import differences
from iapo_bench.staleness import SettingsFiles
from iapo_bench.workflow import Workflow


def write_data(folder: Path, **shift: int) -> None:
    """A small GSM8K, the golds of a split shifted by a number."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 520), ("test", 5)):
        rows = [
            {"question": f"What is {split} {i}?", "answer": f"It is.\n#### {i + shift.get(split, 0)}"}
            for i in range(count)
        ]
        (folder / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def gsm8k(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def names(**changes) -> dict[str, str]:
    """The settings file of every job of SmolLM2 on local data and a local model."""
    settings = {"world": {"data_dir": "data"}, "model": {"source": "model", "sft": None}}
    flow = Workflow(read_tier("smollm2", {**settings, **changes}))
    return {
        "prepare": flow.prepare(),
        "base": flow.base(),
        "train": flow.train("iapo/seed0"),
        "trial": flow.train("tune/dapo/trial1") if flow.tier.tune else "",
        "sample": flow.sample("iapo/seed0", "test"),
        "grade": flow.grade("iapo/seed0", "test"),
        "lm_eval": flow.lm_eval("base"),
        "metrics": flow.metrics("iapo"),
        **({"checkpoint": flow.checkpoint("theirs")} if "theirs" in flow.tier.methods else {}),
        **({"measured": flow.metrics("theirs")} if "theirs" in flow.tier.methods else {}),
        "table": flow.artefact("table"),
    }


def stale(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {job for job in before if before[job] != after[job]}


def test_every_job_is_named_by_the_module_that_does_its_work_and_by_files_found_by_name(gsm8k, monkeypatch):
    seen: dict[str, list[str]] = {}

    def digest(module: str, plugins=()) -> str:
        seen[module.removeprefix("iapo_bench.")] = [path.name for path in plugins]
        return ""

    monkeypatch.setattr(staleness, "code_digest", digest)
    names()
    dataset = ["gsm8k.py"]
    held_out = [f"{name}.py" for name in read_tier("smollm2").world.held_out]
    assert seen == {
        "worlds.prepare": [*dataset, *held_out],
        "train.base": [*dataset, *held_out],
        "train.run": ["iapo.py", "correct.py", *dataset],
        "evaluate.sample": dataset,
        "evaluate.grade": dataset,
        "evaluate.lm_evaluation": dataset,
        "report.rows": [],
        "report.table1": [],
    }


def test_a_gold_mended_in_place_grades_again_and_trains_nothing(gsm8k):
    before = names()
    write_data(gsm8k / "data", test=4)
    assert stale(before, names()) == {"prepare", "grade", "lm_eval"}


def test_a_training_gold_trains_again_and_samples_no_test_anew_by_itself(gsm8k):
    before = names()
    write_data(gsm8k / "data", train=4)
    assert stale(before, names()) == {"prepare", "train"}


def test_a_solution_mended_in_place_makes_the_base_anew_that_learns_from_it(gsm8k):
    def mend() -> None:
        path = gsm8k / "data" / "gsm8k_train.jsonl"
        path.write_text(path.read_text().replace("It is.", "It was.", 3))

    taught = {"model": {"source": "model", "sft": {"steps": 3}}}
    before = names(), names(**taught)
    mend()
    after = names(), names(**taught)
    assert stale(before[0], after[0]) == {"prepare"}
    assert stale(before[1], after[1]) == {"prepare", "base"}


def test_half_the_rows_gone_are_noticed(gsm8k):
    before = names()
    path = gsm8k / "data" / "gsm8k_test.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert stale(before, names()) == {"prepare", "sample", "grade", "lm_eval"}


def test_files_that_were_only_touched_or_moved_make_nothing_stale(gsm8k):
    before = names()
    shutil.copytree(gsm8k / "data", gsm8k / "elsewhere")
    write_data(gsm8k / "data")
    assert names() == before
    assert stale(before, names(world={"data_dir": "elsewhere"})) == set()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_other_weights_in_the_same_directory_make_the_base_anew(gsm8k, file):
    (gsm8k / "model" / file).write_bytes(b"weights")
    before = names()
    (gsm8k / "model" / file).write_bytes(b"others!")
    assert stale(before, names()) == {"base", "metrics"}


def test_other_weights_of_a_row_that_is_measured_fetch_it_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").write_bytes(b"weights")
    flow = Workflow(read_tier("smoke", {"methods": {"theirs": {"checkpoint": "theirs"}}}))
    before = flow.checkpoint("theirs"), flow.train("iapo/seed0")
    assert (flow.checkpoint("theirs"), flow.train("iapo/seed0")) == before
    (tmp_path / "theirs" / "model.safetensors").write_bytes(b"others!")
    flow = Workflow(read_tier("smoke", {"methods": {"theirs": {"checkpoint": "theirs"}}}))
    assert flow.checkpoint("theirs") != before[0]
    assert flow.train("iapo/seed0") == before[1]


def test_a_model_directory_counts_by_its_content_and_not_by_its_place(gsm8k):
    row = {"theirs": {"checkpoint": "model", "subfolder": None}}
    before = names(methods=row)
    moved = gsm8k / "elsewhere" / "model"
    shutil.copytree(gsm8k / "model", moved / "deep")
    shutil.copytree(gsm8k / "model", moved, dirs_exist_ok=True)
    row = {"theirs": {"checkpoint": str(moved), "subfolder": "deep"}}
    assert names(methods=row, model={"source": str(moved), "sft": None}) == before
    job = yaml.safe_load(Path(before["base"]).read_text())["job"]
    assert job["model"]["source"] == str(moved), "the job gets the place"
    job = yaml.safe_load(Path(before["checkpoint"]).read_text())["job"]
    assert job["source"] == str(moved / "deep")


def test_generated_problems_count_by_their_content_and_not_by_the_code_that_makes_them(tmp_path, monkeypatch):
    """Problems of the hub count by the recipe, since their content is not here."""
    monkeypatch.chdir(tmp_path)

    def jobs(tier: str) -> list[str]:
        flow = Workflow(read_tier(tier))
        return [flow.prepare(), flow.train("iapo/seed0"), flow.sample("base", "test"), flow.grade("base", "test")]

    before = {tier: jobs(tier) for tier in ("smoke", "smollm2")}
    real = workflow.code_digest

    def edited(module: str, plugins=()) -> str:
        return "edited" if module == "iapo_bench.worlds.prepare" else real(module, plugins)

    for module in (workflow, staleness):
        monkeypatch.setattr(module, "code_digest", edited)
    changed = {tier: [a != b for a, b in zip(jobs(tier), before[tier], strict=True)] for tier in before}
    assert changed == {"smoke": [True, False, False, False], "smollm2": [True] * 4}


def test_the_checksum_of_a_large_file_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    file, kept = tmp_path / "weights", tmp_path / "settings" / "checksums.json"
    file.write_bytes(b"weights")
    first = SettingsFiles(kept.parent).checksum(file)
    monkeypatch.setattr(staleness, "checksum", lambda path: pytest.fail("read again"))
    assert SettingsFiles(kept.parent).checksum(file) == first
    monkeypatch.undo()
    file.write_bytes(b"others!")
    second = SettingsFiles(kept.parent).checksum(file)
    assert second == hashlib.sha256(b"others!").hexdigest() != first
    stat = file.stat()
    other = tmp_path / "others"
    other.write_bytes(b"thirds!")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(file)
    third = SettingsFiles(kept.parent).checksum(file)
    assert third == hashlib.sha256(b"thirds!").hexdigest(), "of equal size and time"
    second = third
    kept.write_text("{")
    assert SettingsFiles(kept.parent).checksum(file) == second


def test_settings_that_cannot_change_a_result_leave_name_and_time_of_the_file(gsm8k):
    before = names()
    path = Path(before["train"])
    time = path.stat().st_mtime_ns
    assert names(train={"checkpoint_every": 3, "micro_batch_tokens": 77}) == before
    assert path.stat().st_mtime_ns == time
    assert yaml.safe_load(path.read_text())["job"]["train"]["micro_batch_tokens"] == 77, "the job gets the new value"


def test_a_settings_change_reaches_the_jobs_that_it_changes(gsm8k):
    before = names()
    assert stale(before, names(train={"temperature": 0.5})) == {"train", "metrics"}
    assert stale(before, names(evaluate={"temperature": 0.5})) == {"sample", "metrics"}
    assert stale(before, names(methods={"dapo": {"lr": 0.5}})) == set()
    assert stale(before, names(methods={"iapo": {"options": {"beta": 0.5}}})) == {"train", "metrics"}


def test_options_that_were_none_are_told_by_the_new_ones_alone():
    assert differences({"options": {}, "lr": 1}, {"options": {"fade": 0.2}, "lr": 1}) == (
        "since options.fade is 0.2, was unset"
    )
    assert differences({"options": {"fade": 0.2}}, {"options": {}}) == "since options.fade is unset, was 0.2"
    assert differences({"options": {}}, {"options": None}) == "since options is unset, was {}"


def test_a_stale_job_says_why_in_one_line(gsm8k, capsys):
    job = Path(names()["train"])
    ran = job.parent / "ran" / "train--iapo-seed0.yaml"
    ran.parent.mkdir()
    shutil.copy(job, ran)
    names()
    assert "stale" not in capsys.readouterr().err
    names(train={"lr": 0.25, "temperature": 0.5})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stale: train--iapo-seed0, since settings.train.temperature is 0.5, was 1.0; ")
    assert "settings.train.lr is 0.25, was 1e-06" in line


def test_a_table_of_other_rows_says_which(gsm8k, capsys):
    note_ran(Path(names()["table"]))
    names(methods=["iapo", "grpo"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stale: table, since rows.grpo/0 is there, was unset; rows.dapo/0 is unset, was there; ")
    names(methods=["iapo", "sgrpo", "gtpo", "gfpo", "dapo"])
    assert "stale: table, since rows is ['base', 'ia" in capsys.readouterr().err, "of another order"


def test_what_ran_in_between_makes_old_settings_young(gsm8k):
    """Where Snakemake's own records are gone, or are not asked, it goes by times."""
    first = Path(names()["train"])
    os.utime(first, ns=(0, 0))
    note_ran(first)
    names()
    assert first.stat().st_mtime_ns == 0, "what ran with them is not stale"
    note_ran(Path(names(train={"temperature": 0.5})["train"]))
    again = Path(names()["train"])
    assert again == first
    assert first.stat().st_mtime_ns > (first.parent / "ran" / "train--iapo-seed0.yaml").stat().st_mtime_ns


def test_other_rows_and_seeds_are_other_settings_of_what_is_made_of_them(gsm8k):
    before = names()
    assert stale(before, names(train={"seeds": [0, 1]})) == {"metrics", "table"}
    assert stale(before, names(methods=["iapo"])) == {"table"}


def test_an_error_ends_the_workflow_in_one_line_and_is_no_missing_input(gsm8k, capsys):
    """Snakemake takes an `Exception` of an input function for a file that nothing makes, and old results for new."""
    flow = Workflow(read_tier("smollm2", {"world": {"data_dir": "data"}, "model": {"source": "model", "sft": None}}))
    assert flow.settings("grade", "iapo/seed0", "test") == flow.grade("iapo/seed0", "test")
    assert flow.settings("table") == flow.artefact("table")
    (gsm8k / "data" / "gsm8k_test.jsonl").write_text('{"question": "What?", "answer": "It is 7"}\n')
    with pytest.raises(SystemExit) as stop:
        flow.settings("grade", "iapo/seed0", "test")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert "gsm8k_test.jsonl:1: no '####'" in line


def test_a_run_that_is_none_is_refused(gsm8k):
    flow = Workflow(read_tier("micro"))
    with pytest.raises(UserError, match="is not a training run"):
        flow.train("base")
    for run in ("iapoo/seed0", "tune/iapoo/trial0"):
        with pytest.raises(UserError, match="unknown method 'iapoo': did you mean 'iapo'"):
            flow.train(run)


def test_an_option_that_the_dataset_has_not_is_named_before_anything_runs(gsm8k):
    with pytest.raises(UserError, match="--config: unknown option of the micro world 'n_tset': did you mean 'n_test'"):
        Workflow(read_tier("smoke", {"world": {"options": {"n_tset": 3}}}))


def test_a_tier_without_a_search_says_that_and_warns_of_nothing(gsm8k, capsys):
    with pytest.raises(SystemExit):
        Workflow(read_tier("smoke")).settings("tune")
    assert capsys.readouterr().err == "Error: tier smoke has no 'tune' section: add one, or choose another tier\n"
