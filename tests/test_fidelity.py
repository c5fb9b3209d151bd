"""The table of departures: which variants follow one, what they did to trained models, and what readers see."""

import pandas as pd
import pytest
from test_tables import make_row

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import save_model
from iapo_bench.report.departures import ALL, fidelity_job, followed
from iapo_bench.report.document import markdown
from iapo_bench.report.fidelity import fidelity_blocks, make_fidelity, trained_effects, with_places
from iapo_bench.worlds import write_problems


def tier(**ablations):
    return read_tier("micro", {"ablations": ablations, "methods": ["iapo", "dapo"]})


def test_variants_that_follow_a_departure_are_recognised():
    found = followed(
        tier(
            gaps={"method": "iapo", "options": {"reading": {"postfix_chunk": 16}}},
            falling={"method": "dapo", "lr_schedule": "linear"},
            other={"method": "iapo", "options": {"alpha": 0.0}},
            both={"method": "iapo", "lr_schedule": "linear", "options": {"smoothing": True}},
            whole={"method": "dapo", "profile": "released", "options": {"overlong_cache": 0}},
        )
    )
    assert found["gaps"] == "position gaps"
    assert found["falling"] == "learning rate falls"
    assert found["whole"] == found["iapo_released"] == ALL
    assert not {"other", "both", "iapo_ni"} & found.keys()


def test_the_job_compares_the_methods_of_the_table():
    job = fidelity_job(tier())
    assert set(job.methods) >= {"iapo", "dapo"}
    assert job.methods["iapo"] == tier().method("iapo").options
    assert job.departed["iapo_released"] == ALL


def rows() -> list:
    return [
        make_row("dapo", (1, 16), 0.5, 50.0),
        make_row("falling", (1, 16), 0.5, 40.0, parent="dapo"),
    ]


def job():
    found = fidelity_job(tier(falling={"method": "dapo", "lr_schedule": "linear"}))
    return found.model_copy(update={"departed": {"falling": "learning rate falls"}})


def test_a_trained_variant_less_its_method():
    table = trained_effects(rows(), job()).set_index("compared")
    length = table.loc["length"]
    assert length["difference"] == pytest.approx(length["departed"] - length["paper"])
    assert length["difference"] == pytest.approx(-10, abs=0.5)
    assert length["lo"] < length["difference"] < length["hi"] < 0
    assert length["p"] < 1e-3
    assert length["train_seeds"] == "0 1"
    assert table.loc["pass@1", "p"] > 0.01


def test_a_variant_without_its_method_is_refused():
    with pytest.raises(UserError, match="falling and of the method that it varies"):
        trained_effects(rows()[1:], job())


def test_readers_see_what_departs_where_and_what_is_not_reproduced():
    credit = {"method": "iapo", "of": "credit", "compared": "advantage", "correlation": 0.5, "relative_size": 0.9}
    credit |= {"relative_difference": 0.3, "sign_flips": 0.1}
    still = {**credit, "departure": "learning rate falls", "relative_difference": 0.0}
    table = with_places(pd.DataFrame([{**credit, "departure": "smoothing"}, still]))
    missing = table[table["of"] == "not reproduced"].set_index("departure")
    assert missing.loc["undefined numbers", "where"] == "not reproduced"
    smoothing = table[table["departure"] == "smoothing"].iloc[0]
    assert (smoothing["where"], smoothing["source"]) == ("methods/iapo.py: smoothing = True", "1304")
    text = markdown(fidelity_blocks(table))
    assert "Nothing here: learning rate falls." in text
    assert "reading.postfix_chunk = 16" in text


def test_files_of_a_small_model(tmp_path, model, tokenizer, world):
    """Real rollouts of an untrained model; the summaries of two rows."""
    save_model(model, tokenizer, tmp_path / "base")
    write_problems(tmp_path / "data" / "train.jsonl", world.load("train")[:8])
    paths = []
    for row in rows():
        paths.append(tmp_path / f"{row.method}.json")
        row.write(paths[-1])
    small = job().train.model_copy(update={"prompts_per_step": 2, "group_size": 8, "max_tokens": 24})
    run = job().model_copy(update={"train": small})
    make_fidelity(run, base=tmp_path / "base", data=tmp_path / "data", summaries=paths, out=tmp_path / "fidelity.csv")
    table = pd.read_csv(tmp_path / "fidelity.csv")
    assert set(table["of"]) == {"credit", "trained model", "not reproduced"}
    credit = table[table["of"] == "credit"]
    assert set(credit["method"]) == {"iapo", "dapo", *run.methods}
    assert (credit["completions"] == 4 * 2 * 8).all()
    gaps = credit[(credit["departure"] == "position gaps") & (credit["compared"] == "informativeness term")]
    assert gaps["relative_difference"].item() > 0
    assert "position gaps" in (tmp_path / "fidelity.md").read_text()
