"""Early answers against the answers of continuations, on small real models."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_role_scores import made  # noqa: F401

from iapo_bench.config.tier_file import read_tier
from iapo_bench.models.checkpoints import load_model, load_tokenizer
from iapo_bench.signals import answer_entropies
from iapo_bench.tokens import calibration
from iapo_bench.tokens.calibration import CONTINUATIONS, make_calibration, measure, summarise
from iapo_bench.tokens.roles import read_samples, select
from iapo_bench.worlds import POSTFIX, read_problems


def settings(**changes):
    return read_tier("smoke").calibration_job().model_copy(update=changes)


@pytest.fixture
def run(made):  # noqa: F811
    folder = made / "base"
    return {"model": folder / "model", "samples": folder / "test" / "samples.parquet", "data": made / "data"}


def test_the_early_entropy_is_the_signals(run):
    measured = measure(settings(), **run, prefixes=8)
    model, tokenizer = load_model(run["model"]), load_tokenizer(run["model"])
    questions = {problem.id: problem.question for problem in read_problems(run["data"] / "test.jsonl")}
    frame = select(read_samples(run["samples"]), 8).groupby("problem_id").head(1)
    postfix = torch.tensor(tokenizer(POSTFIX, add_special_tokens=False).input_ids)
    for (_, row), found in zip(frame.iterrows(), measured.to_dict("records"), strict=True):
        prompt = torch.tensor([tokenizer(questions[row["problem_id"]]).input_ids])
        said = torch.tensor([row["token_ids"]])
        masks = [torch.ones_like(ids, dtype=torch.bool) for ids in (prompt, said)]
        read = answer_entropies(model, prompt, masks[0], said, masks[1], postfix, temperature=1.0)
        assert torch.isclose(read[0].double(), torch.tensor(found["early_entropy"]).double(), atol=1e-4).any()


def test_the_model_is_measured_in_the_dtype_that_it_is_trained_in(run):
    half, whole = (measure(settings(dtype=dtype), **run, prefixes=8) for dtype in ("bfloat16", "float32"))
    gaps = (half["early_entropy"] - whole["early_entropy"]).abs()
    assert 1e-5 < gaps.max() < 0.2


def test_a_sure_model_continues_to_one_answer(run, monkeypatch):
    opening = load_tokenizer(run["model"]).convert_tokens_to_ids("<answer>")
    answers = []
    real = calibration._first_answer_tokens

    def record(completions, token):
        answers.append(real(completions, token))
        return answers[-1]

    monkeypatch.setattr(calibration, "_first_answer_tokens", record)
    cold = measure(settings(temperature=1e-4), **run, prefixes=8)
    assert opening >= 0
    assert all(len(set(found)) <= 1 for found in answers)
    assert cold["continued_entropy"].dropna().eq(0).all()


def test_entropies_that_agree_have_no_gap():
    generator = np.random.default_rng(0)
    true = generator.uniform(0, 2, 400)
    frame = pd.DataFrame(
        {
            "place": generator.uniform(0, 1, 400),
            "early_entropy": true + 0.01 * generator.standard_normal(400),
            "continued_entropy": true,
            "divergence": 0.01,
            "answered": 1.0,
        }
    )
    table = summarise(frame).set_index("part")
    assert table.loc["all", "prefixes"] == 400 == table["prefixes"].iloc[:-1].sum()
    assert table.loc["all", "gap_lo"] < 0 < table.loc["all", "gap_hi"]
    assert table.loc["all", "correlation"] > 0.99
    shifted = summarise(frame.assign(early_entropy=true - 0.5)).set_index("part")
    assert (shifted["gap_hi"] < 0).all()


def test_files(run, tmp_path):
    out, figure = tmp_path / "calibration.csv", tmp_path / "calibration.png"
    make_calibration(settings(), **run, out=out, figure=figure, prefixes=8)
    table = pd.read_csv(out)
    assert table["part"].iloc[-1] == "all"
    assert (table["continuations"] == CONTINUATIONS).all()
    assert figure.stat().st_size > 1000
    assert "these numbers mean nothing" in figure.with_suffix(".svg").read_text()
    for form in (".md", ".tex", ".html"):
        assert "these numbers mean nothing" in out.with_suffix(form).read_text()
    assert "| all " in out.with_suffix(".md").read_text()
