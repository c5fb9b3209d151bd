"""Scoring the tokens of a small real model and putting them into tables, and the mistakes that people make."""

import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_roles import ids

from iapo_bench.cli import main
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate.sample import sample
from iapo_bench.models.checkpoints import build_micro, load_model, load_tokenizer, save_model
from iapo_bench.tokens.roles import SCORES, make_role_tables, read_samples, roles_of, select
from iapo_bench.tokens.scores import score_tokens
from iapo_bench.worlds import POSTFIX, read_problems
from iapo_bench.worlds.datasets.micro import VOCABULARY, build_tokenizer
from iapo_bench.worlds.prepare import prepare


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data and two runs of an untaught model, which says everything, special tokens too."""
    folder = tmp_path_factory.mktemp("made")
    tier, tokenizer = read_tier("smoke"), build_tokenizer()
    prepare(tier.prepare_job(), folder / "data")
    evaluate = tier.evaluate.model_copy(update={"seeds": [42, 7], "n_samples": 3})
    job = tier.sample_job("test").model_copy(update={"evaluate": evaluate})
    for seed, name in enumerate(("base", "iapo/seed0")):
        network = build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=seed)
        save_model(network, tokenizer, folder / name / "model")
        model, out = folder / name / "model", folder / name / "test"
        sample(job, model=model, data=folder / "data", out=out)
    return folder


def score(made: Path, name: str, out: Path, dtype: str = "float32", **changes) -> pd.DataFrame:
    run = made / name
    arguments = {"model": run / "model", "samples": run / "test" / "samples.parquet", "data": made / "data"} | changes
    score_tokens(read_tier("smoke", {"model": {"dtype": dtype}}).tokens_job(), **arguments, out=out)
    return pd.read_parquet(out)


@torch.no_grad()
def entropy_of(model, ids_L: torch.Tensor) -> torch.Tensor:
    """Entropy (nats) of what follows a sequence."""
    logp = torch.log_softmax(model(ids_L[None]).logits[0, -1], dim=-1)
    return -(logp.exp() * logp).sum()


def test_every_token_is_scored_as_the_model_scores_it(made, tmp_path):
    tokens = score(made, "base", tmp_path / "tokens.parquet", completions=16)
    samples = read_samples(made / "base" / "test" / "samples.parquet")
    chosen = select(samples, 16)
    assert len(chosen) == 16
    assert len(tokens) == chosen["n_tokens"].sum()
    assert {"token", "role", "logp", "correct"} < set(tokens)
    assert not tokens.select_dtypes("number").isna().any().any()
    model, tokenizer = load_model(made / "base" / "model"), load_tokenizer(made / "base" / "model")
    postfix = torch.tensor(tokenizer(POSTFIX, add_special_tokens=False).input_ids)
    questions = {problem.id: problem.question for problem in read_problems(made / "data" / "test.jsonl")}
    for row in chosen.iloc[::5].itertuples():
        mine = tokens[(tokens["problem_id"] == row.problem_id) & (tokens["sample"] == row.sample)]
        assert mine["token"].tolist() == [VOCABULARY[i] for i in row.token_ids]
        assert mine["role"].tolist() == roles_of(mine["token"].tolist())
        prompt, said = torch.tensor([ids(questions[row.problem_id])]), torch.tensor([row.token_ids])
        with torch.no_grad():
            logits = model(torch.cat([prompt, said], dim=1)).logits[0, prompt.shape[1] - 1 : -1]
        logp = torch.log_softmax(logits, dim=-1)
        entropy = -(logp.exp() * logp).sum(dim=-1)
        exits = [torch.cat([prompt[0], said[0, :t], postfix]) for t in range(said.shape[1] + 1)]
        exit_entropy = torch.stack([entropy_of(model, sequence) for sequence in exits])
        expected = {
            "logp": logp.gather(1, said[0][:, None])[:, 0],
            "next_token_entropy": entropy,
            "next_token_information": entropy - torch.cat([entropy[1:], torch.zeros(1)]),
            "information": exit_entropy[:-1] - exit_entropy[1:],
        }
        for column, values in expected.items():
            np.testing.assert_allclose(mine[column], values, atol=2e-5, err_msg=column)
        information = (mine["information"] * mine["ranked"]).tolist()
        ends = [0, *(i + 1 for i, token in enumerate(mine["token"]) if token == ";"), len(mine)]
        sums = [sum(information[start:end]) for start, end in pairwise(ends) for _ in range(start, end)]
        np.testing.assert_allclose(mine["statement_information"], sums, atol=1e-5)
        assert mine["relative_position"].iloc[[0, -1]].tolist() == [0, len(mine) > 1]


def test_tokens_are_scored_in_the_dtype_that_they_are_trained_in(made, tmp_path):
    half, whole = (
        score(made, "base", tmp_path / f"{dtype}.parquet", dtype=dtype, completions=16)
        for dtype in ("bfloat16", "float32")
    )
    gaps = (half["logp"] - whole["logp"]).abs()
    assert 1e-3 < gaps.max() < 0.2


def test_tables_and_figure_are_the_same_each_time(made, tmp_path):
    for name in ("base", "iapo/seed0"):
        first = score(made, name, made / name / "test" / "token_roles.parquet")
        assert first.equals(score(made, name, tmp_path / "again.parquet"))
    runs = {"base": made / "base", "iapo/0": made / "iapo" / "seed0"}
    for folder in (tmp_path / "a", tmp_path / "b"):
        make_role_tables(
            read_tier("smoke").roles_job(),
            runs,
            informativeness=folder / "informativeness.csv",
            roles=folder / "roles.csv",
            figure=folder / "figures" / "informativeness",
        )
    for name in ("informativeness.csv", "roles.csv", "figures/informativeness.png", "figures/informativeness.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    table = pd.read_csv(tmp_path / "a" / "informativeness.csv")
    labels = ["model", "dataset", "method", "train_seed", "scored_by", "score", "needed_against"]
    assert table.columns[: len(labels)].tolist() == labels
    assert len(table) == 2 * len(SCORES) * 4
    assert table["auc"].between(0, 1).all()
    assert ((table["auc_lo"] <= table["auc"]) & (table["auc"] <= table["auc_hi"])).all()
    removed = pd.read_csv(tmp_path / "a" / "roles.csv").set_index(["method", "role"])
    lengths = pd.read_parquet(made / "base" / "test" / "samples.parquet")["n_tokens"]
    assert removed.loc[("base", "all"), "tokens"] == pytest.approx(lengths.mean(), rel=1e-5)
    assert removed.loc["base", "tokens"].drop("all").sum() == pytest.approx(lengths.mean(), rel=1e-5)
    assert removed.loc["iapo", "change"].notna().all()
    for name, heading in (("informativeness", "needed against redundant tokens"), ("roles", "Change against the base")):
        for form in ("md", "tex", "html"):
            assert heading in (tmp_path / "a" / f"{name}.{form}").read_text()


def bad_input(made: Path, tmp: Path, mistake: str) -> tuple[dict, str, str]:
    """Changed arguments, the tier, and a part of the message."""
    samples = made / "base" / "test" / "samples.parquet"
    frame = pd.read_parquet(samples)
    if mistake == "another world":
        return {}, "smollm2", "token roles are defined only in the micro world, not in 'gsm8k'"
    if mistake == "no samples":
        return {"samples": tmp / "no.parquet"}, "smoke", "no.parquet does not exist: sample first"
    if mistake == "no parquet":
        (tmp / "changed.parquet").write_text("half a file")
        return {"samples": tmp / "changed.parquet"}, "smoke", "cannot be read"
    if mistake == "no column":
        frame = frame.drop(columns="token_ids")
        message = "no column 'token_ids': sample first"
    elif mistake == "larger vocabulary":
        frame["token_ids"] = [[1, 50000], *frame["token_ids"].iloc[1:]]
        message = "token 50000 is not in the micro world's vocabulary"
    elif mistake == "other words":
        frame.loc[0, "text"] = "Let us think"
        message = "tokens and text of problem 'micro-test-0' disagree"
    elif mistake == "other problems":
        frame.loc[0, "problem_id"] = "micro-test-99"
        message = "problem 'micro-test-99' is not in"
    else:
        words = build_tokenizer()
        words.add_tokens(["more"])
        save_model(load_model(made / "base" / "model"), words, tmp / "model")
        return {"model": tmp / "model"}, "smoke", "does not have the micro world's vocabulary"
    frame.to_parquet(tmp / "changed.parquet")
    return {"samples": tmp / "changed.parquet"}, "smoke", message


@pytest.mark.parametrize(
    "mistake",
    [
        *("another world", "no samples", "no parquet", "no column", "larger vocabulary", "other words"),
        *("other problems", "other tokenizer"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(made, tmp_path, monkeypatch, capsys, mistake):
    changes, tier, message = bad_input(made, tmp_path, mistake)
    run = made / "base"
    options = {"model": run / "model", "samples": run / "test" / "samples.parquet", "data": made / "data"} | changes
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    out = tmp_path / "out" / "tokens.parquet"
    monkeypatch.setattr(sys, "argv", ["iapo-bench", "token-roles", "--config", tier, *arguments, "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("iapo-bench: ")
    assert not out.parent.exists()


def test_tables_without_scores_write_nothing(made, tmp_path):
    shutil.copytree(made / "base" / "test", tmp_path / "run" / "test", ignore=shutil.ignore_patterns("token_roles*"))
    where = {name: tmp_path / "out" / name for name in ("informativeness", "roles", "figure")}
    with pytest.raises(UserError, match=r"token_roles.parquet does not exist: score its tokens first"):
        make_role_tables(read_tier("smoke").roles_job(), {"base": tmp_path / "run"}, **where)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["token-roles", "role-tables"])
def test_help(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["iapo-bench", command, "--help"])
    main()
    assert "Micro world only." in " ".join(capsys.readouterr().out.split())
