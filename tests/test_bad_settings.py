"""Settings of any kind are taken, or refused in one line."""

import math
from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from test_bad_input import complaint

from iapo_bench.cli.options import read_job
from iapo_bench.config.evaluate import SampleJob
from iapo_bench.config.reading import nest, parse_yaml, section_of
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.files import write_json
from iapo_bench.method import load_method
from iapo_bench.seeds import stream_seed
from iapo_bench.train.sft import SFT, TaughtSFT
from iapo_bench.worlds.datasets.micro import MicroWorld


def test_a_short_file_that_means_an_endless_one_is_refused():
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} {{k: *a{i - 1}, l: *a{i - 1}}}\n" for i in range(1, 40))
    for text in (laughs, "a: &a {b: *a}"):
        with pytest.raises(UserError, match="settings"):
            parse_yaml(text, "settings")


def _settings(section: type[BaseModel], depth: int = 3) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield name
        if (below := section_of(field.annotation)) and depth > 1:
            yield from (f"{name}.{key}" for key in _settings(below, depth - 1))


@pytest.mark.parametrize("value", ["-1", "9" * 22, "[[1]]", '"\\0"', '"\\ud800"', "2020-01-01", "{a: {b: [1]}}"])
def test_every_setting_takes_any_value_or_refuses_it_in_one_line(value):
    def jobs(key: str) -> None:
        tier = read_tier("smoke", nest(key, parse_yaml(value, "--set")[0]), where="--set")
        tier.prepare_job(), tier.base_job(), tier.sample_job("test"), tier.lm_eval_job()
        tier.train_job(next(iter(tier.methods)), 0)

    for key in _settings(TierConfig):
        assert "\n" not in complaint(lambda key=key: jobs(key), otherwise="it is taken")


def test_a_job_without_its_name_is_refused_before_it_runs(tmp_path):
    path = tmp_path / "job.yaml"
    write_json(path, {"job": read_tier("smoke").sample_job("test").model_dump(mode="json")})
    with pytest.raises(UserError, match=f"{path} has no 'name'"):
        read_job(path, SampleJob)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaughtSFT(hidden=-32), "model.sft.hidden must be a whole number above 0, is -32"),
        (lambda: SFT(steps=2.5), "model.sft.steps must be a whole number above 0, is 2.5"),
        (lambda: SFT(lr=math.inf), "model.sft.lr must be a number above 0, is inf"),
        (lambda: MicroWorld(n_train=-4), "n_train must be from 1 to 1000000 problems, is -4"),
        (lambda: MicroWorld(n_validation=int(1e308)), "n_validation must be from 1 to 1000000"),
        (lambda: MicroWorld(max_terms=10**9), "max_terms <= 100"),
        (lambda: MicroWorld(n_test=2.5), "n_test must be a whole number"),
        (lambda: MicroWorld(slip=7.0), "slip must be a probability from 0 to 1"),
        (lambda: stream_seed(-1, "data"), "the seed -1 is below 0"),
        (lambda: load_method("iapo", alpha=math.inf), "option alpha of iapo is not a finite number"),
        (lambda: load_method("grpo", loss={"kl_coef": math.nan}), "option loss.kl_coef of grpo is not a finite number"),
        (lambda: read_tier("smoke", {"train": {"lr": math.inf}}), "train.lr"),
        (lambda: parse_yaml('a: 1\nfile: "a\\0b.jsonl"', "tier.yaml"), "tier.yaml:2 is not YAML: no text can hold"),
        (lambda: read_tier("smoke", {"train": {"completions": -8}}), "train.completions"),
    ],
)
def test_sizes_below_one_and_rates_without_end_are_refused(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
