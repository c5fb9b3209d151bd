"""Rows that are only measured: a checkpoint in place of a method."""

import pytest

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import load_tokenizer, save_model
from iapo_bench.train.base import fetch_checkpoint
from iapo_bench.workflow import Workflow


def tier(**entry):
    given = {"methods": {"authors": {"checkpoint": "someone/models@v1", **entry}}, "train": {"seeds": [0, 1]}}
    return read_tier("smoke", given)


def test_a_measured_row_is_sampled_and_not_trained():
    flow = Workflow(tier(subfolder="a"))
    assert flow.runs["authors/0"] == "results/smoke/authors/seed0"
    assert "authors/1" not in flow.runs
    assert {"iapo/0", "iapo/1"} <= flow.trained.keys()
    assert not {"authors/0", "base"} & flow.trained.keys()
    assert flow.folders("authors") == ["results/smoke/authors/seed0"]
    row = tier(subfolder="a").row_job("authors")
    assert (row.parent, row.selection, row.profile) == ("authors", "measured only", "")
    assert row.settings.items() >= {"source": "someone/models@v1", "subfolder": "a"}.items()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"lr": 0.1}, "a checkpoint is not trained: leave lr out"),
        ({"checkpoint": None, "subfolder": "a"}, "subfolder needs a checkpoint"),
    ],
)
def test_a_row_is_measured_or_trained(entry, message):
    with pytest.raises(UserError, match=message):
        read_tier("smoke", {"methods": {"iapo": {"checkpoint": "someone/models", **entry}}})


def test_a_trained_row_has_no_checkpoint():
    with pytest.raises(UserError, match="'iapo' has no checkpoint in tier smoke"):
        tier().checkpoint_job("iapo")


def test_the_authors_tier_has_a_folder_for_each_dataset():
    folders = {
        name: read_tier("authors", {"world": {"name": name}}).checkpoint_job("authors").subfolder
        for name in ("gsm8k", "math500", "dapo")
    }
    assert folders == {
        "gsm8k": "Qwen2.5-0.5B-Instruct_GSM8K",
        "math500": "Qwen2.5-0.5B-Instruct_MATH-500",
        "dapo": "Qwen2.5-0.5B-Instruct_DAPO-Math-17k",
    }


def test_a_local_directory_stands_for_the_hub(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "published" / "small")
    found = read_tier("smoke", {"methods": {"authors": {"checkpoint": str(tmp_path / "published")}}})
    job = found.checkpoint_job("authors").model_copy(update={"subfolder": "small"})
    fetch_checkpoint(job, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert load_tokenizer(tmp_path / "model").vocab_size == tokenizer.vocab_size
    for change, message in (
        ({"subfolder": "smal"}, "unknown subfolder of .* 'smal': did you mean 'small'"),
        ({"source": "random:llama"}, "random:llama has no subfolders: leave out 'small'"),
    ):
        with pytest.raises(UserError, match=message):
            fetch_checkpoint(job.model_copy(update=change), tmp_path / "other")
    assert not (tmp_path / "other").exists()
