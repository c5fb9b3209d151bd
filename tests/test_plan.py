"""The plan: formulas that scale as they should, predictions that hold where one can check."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from test_architectures import QWEN, SMALL
from transformers import AutoModelForCausalLM

from iapo_bench.cli import cli
from iapo_bench.config.lora import LoraConfig
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import list_tiers, read_tier
from iapo_bench.errors import UserError
from iapo_bench.models.architectures import ARCHITECTURES, Architecture, qwen_config
from iapo_bench.models.lora import add_lora, trainable_state
from iapo_bench.plan import costs, show
from iapo_bench.plan.calibration import compare, fit, read_runs
from iapo_bench.plan.show import architecture, jobs, plan, time_table

ROOT = Path(__file__).parent.parent


def test_arithmetic_scales_with_what_it_is_made_of():
    tier = read_tier("qwen-7b", {"train": {"gradient_checkpointing": False}})
    size, lengths = ARCHITECTURES["qwen2.5-7b"], costs.Lengths(200, 400)
    iapo, dapo = (costs.training_work(tier, method, lengths) for method in ("iapo", "dapo"))
    assert iapo.answer
    assert not dapo.answer
    one = costs.flops(size, iapo)
    token = costs.forward_flops(size, 400)
    assert one["update"] == pytest.approx(3 * 600 * token + 2 * size.vocabulary * size.hidden * 400)
    answers = (lengths.postfix + 1) * 400 * token
    assert one["signals"] == pytest.approx(answers + (iapo.policy + iapo.reference) * (200 / 8 + 400) * token)
    assert costs.flops(size, dapo)["signals"] == 0
    assert costs.forward_flops(size, 0) == pytest.approx(
        2 * (QWEN["qwen2.5-7b"] - size.vocabulary * size.hidden), rel=1e-3
    )
    twice = dataclasses.replace(iapo, completions=2 * iapo.completions)
    machine = costs.DEVICES["h100"]
    for phase, hours in costs.seconds(size, iapo, machine, "bfloat16", "vllm").items():
        assert costs.seconds(size, twice, machine, "bfloat16", "vllm")[phase] == pytest.approx(2 * hours)


def test_generation_is_bound_by_bandwidth_in_small_batches_and_by_arithmetic_in_large_ones():
    size, machine = ARCHITECTURES["qwen2.5-7b"], costs.DEVICES["h100"]
    work = costs.training_work(read_tier("qwen-7b"), "grpo", costs.Lengths(10, 400))

    def per_completion(batch: int) -> float:
        return (
            costs.rollout_seconds(
                size, dataclasses.replace(work, batch=batch, completions=batch), machine, "bfloat16", "vllm"
            )
            / batch
        )

    assert per_completion(8) == pytest.approx(2 * per_completion(16), rel=0.1)
    assert per_completion(2**14) == pytest.approx(per_completion(2**15), rel=0.1)


def test_memory_by_strategy():
    tier = read_tier("qwen-7b")
    rows = {
        row["strategy"]: row
        for row in costs.memory(ARCHITECTURES["qwen2.5-7b"], tier, costs.LENGTHS["gsm8k"], costs.DEVICES["h100"], 8)
    }
    weights = QWEN["qwen2.5-7b"] * 2 / 2**30
    single, sharded = rows["single GPU"], rows["sharded (FSDP2)"]
    assert single["weights"] == pytest.approx(weights)
    assert single["optimiser"] == pytest.approx(6 * weights)  # two moments and a copy, float32
    assert single["peak GiB"] > 80e9 / 2**30 > sharded["peak GiB"]
    assert sharded["optimiser"] == pytest.approx(6 * weights / 8)
    lora = rows["LoRA, rank 16"]
    # Adapters and their two moments are float32, the weights are not; the base is its own reference.
    adapters = lora_parameters("qwen2.5-7b") * 4 / 2**30
    assert lora["gradients"] == pytest.approx(adapters)
    assert lora["weights"] == pytest.approx(weights + adapters)
    assert lora["optimiser"] == pytest.approx(2 * adapters)
    assert lora["reference"] == 0
    assert sharded["gathered"] == pytest.approx(2 * weights)  # policy and reference


def test_what_is_computed_twice_is_not_kept():
    def row(checkpointing: bool) -> dict:
        tier = read_tier("qwen-1.5b", {"train": {"gradient_checkpointing": checkpointing}})
        size, lengths = ARCHITECTURES["qwen2.5-1.5b"], costs.LENGTHS["gsm8k"]
        work = costs.training_work(tier, "grpo", lengths)
        (single, *_) = costs.memory(size, tier, lengths, costs.DEVICES["h100"], 8)
        return {**single, "update": costs.flops(size, work)["update"]}

    kept, twice = row(False), row(True)
    assert twice["activations"] < kept["activations"] / 5
    assert 1.2 < twice["update"] / kept["update"] < 4 / 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gpus": 1, "train": {"sharded": False}}, "single GPU"),
        ({"gpus": 8, "train": {"sharded": False}}, "data parallel"),
        ({"gpus": 8}, "sharded (FSDP2)"),
        ({"gpus": 1, "train": {"sharded": False, "lora": {"rank": 8}}}, "LoRA, rank 8"),
    ],
)
def test_the_strategy_of_a_tier_is_marked(changes, expected):
    text = plan([read_tier("qwen-7b", {"world": {"name": "gsm8k"}, **changes})], device="h100", gpus=8)
    (marked,) = [line for line in text.splitlines() if line.endswith("| yes         |")]
    assert expected in marked


def lora_parameters(name: str) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(qwen_config(name), dtype=torch.bfloat16)
    add_lora(model, LoraConfig(rank=costs.LORA_RANK, alpha=32.0), seed=0)
    return sum(weight.numel() for weight in trainable_state(model).values())


def kept_for_the_backward_pass(size: Architecture, tokens: int, *, lora: bool) -> int:
    """Bytes that autograd saves in a forward pass in bfloat16, but for the model's own weights."""
    model = AutoModelForCausalLM.from_config(size.config(), dtype=torch.bfloat16)
    if lora:
        add_lora(model, LoraConfig(rank=costs.LORA_RANK, alpha=32.0), seed=0)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train().get_decoder()(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in own)


def test_what_adapters_keep_for_the_backward_pass_is_what_the_plan_says():
    def layer(lora: bool) -> int:
        one, three = (kept_for_the_backward_pass(dataclasses.replace(SMALL, layers=n), 64, lora=lora) for n in (1, 3))
        return (three - one) // 2

    assert layer(lora=True) - layer(lora=False) == 64 * costs._lora_activations(SMALL, 2, costs.LORA_RANK)
    for name, size in ARCHITECTURES.items():
        assert costs._lora_activations(size, 2, costs.LORA_RANK) > 0.3 * costs.ACTIVATION_BYTES * size.hidden, name


@pytest.mark.parametrize("name", ["micro", "smoke", "smollm2", "smoke-0.5b"])
def test_every_tier_can_be_planned(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = plan([read_tier(name)], device="cpu", gpus=4)
    assert f"Total: {sum(jobs(read_tier(name)).values())} jobs" in text
    assert "not measured" in text


def test_other_datasets_that_are_measured_too_are_planned():
    alone, both = (read_tier("smollm2", {"evaluate": {"also": also}}) for also in ([], ["math500"]))
    before, after = jobs(alone), jobs(both)
    assert [after[rule] for rule in ("sample", "grade")] == [2 * before[rule] for rule in ("sample", "grade")]
    assert (after["prepare_also"], after["metrics_also"]) == (1, before["metrics"])
    hours = [
        time_table(tier, ARCHITECTURES["smollm2-135m"], costs.lengths_of("gsm8k"), 1319, "cpu", None)[-1]["CPU-hours"]
        for tier in (alone, both)
    ]
    assert hours[1] > hours[0]


def fake_run(folder, method: str, *, rates: dict[str, float], length: float, steps: int = 4):
    """A run of the micro tier whose phases take exactly what the rates (FLOP/s) say."""
    tier = read_tier("micro")
    lengths = dataclasses.replace(costs.LENGTHS["micro"], completion=length)
    one = costs.flops(architecture(tier), costs.training_work(tier, method, lengths))
    row = {"completions": 128, "groups": 16, "tokens": 128 * length, "seconds_grade": 0.1, "seconds_other": 0.0}
    row |= {f"seconds_{phase}": 128 * one[phase] / rate for phase, rate in rates.items()}
    out = folder / method / "seed0"
    out.mkdir(parents=True)
    (out / "train.jsonl").write_text((json.dumps(row) + "\n") * steps)


RATES = {"rollout": 2e9, "signals": 3e9, "update": 5e9}


def test_the_schooling_of_the_base_is_planned():
    lengths = costs.LENGTHS["gsm8k"]
    work = costs.sft_work(read_tier("smollm2"), lengths)
    assert (work.completions, work.step, work.group) == (218 * 32, 32, 1)
    (base, *_), (unschooled, *_) = (
        time_table(read_tier("smollm2", changes), ARCHITECTURES["smollm2-135m"], lengths, 1319, "h100", None)
        for changes in ({}, {"model": {"sft": None}})
    )
    token = costs.forward_flops(ARCHITECTURES["smollm2-135m"], 190 + 80)
    arithmetic = 218 * 32 * 3 * (190 + 160) * token
    assert base["update h"] * 3600 == pytest.approx(arithmetic / (67e12 * costs.UPDATE_UTILISATION), rel=0.2)
    assert base["steps"] == 218
    assert base["GPU-hours"] - unschooled["GPU-hours"] == pytest.approx(base["update h"])
    assert "update h" not in unschooled


def test_calibration_finds_the_rates_and_predicts_a_run_that_it_has_not_seen(tmp_path):
    for method in ("gfpo", "iapo"):
        fake_run(tmp_path, method, rates=RATES, length=47)
    tier = read_tier("micro", {"model": {"source": "taught"}})
    size, runs = architecture(tier), read_runs(tmp_path, tier)
    rates = fit(size, tier, runs, costs.LENGTHS["micro"])
    assert rates.flops == pytest.approx(RATES)
    assert rates.other == pytest.approx(0.1 / 128)
    for row in compare(size, tier, runs, costs.LENGTHS["micro"], 200):
        assert row["ratio"] == pytest.approx(1, abs=0.01)
    table = time_table(tier, size, costs.LENGTHS["micro"], 200, "cpu", rates)
    assert [row["method"] for row in table] == ["base", *tier.methods, "all"]
    lessons = 1000 * 64
    one = costs.flops(size, costs.sft_work(tier, costs.LENGTHS["micro"]))["update"]
    assert table[0]["training h"] * 3600 == pytest.approx(lessons * one / RATES["update"])
    assert table[0]["CPU-hours"] == pytest.approx(table[0]["training h"] + table[0]["sampling h"])


def test_a_single_run_is_split_and_a_missing_one_is_an_error(tmp_path):
    tier = read_tier("micro")
    fake_run(tmp_path, "iapo", rates=RATES, length=47)
    runs = read_runs(tmp_path / "iapo" / "seed0" / "train.jsonl", tier)
    (row,) = compare(architecture(tier), tier, runs, costs.LENGTHS["micro"], 200)
    assert row["ratio"] == pytest.approx(1, abs=0.01)
    with pytest.raises(UserError, match=r"holds no METHOD/seed\*/train.jsonl of micro"):
        read_runs(tmp_path / "nowhere", tier)
    (tmp_path / "iapo").rename(tmp_path / "mine")
    with pytest.raises(UserError, match="'mine' is not a method of micro"):
        read_runs(tmp_path / "mine" / "seed0" / "train.jsonl", tier)


def test_predictions_hold_on_the_micro_tier_within_a_factor_of_two():
    """On kept logs of real runs, each predicted from the others: clocks of today's machine may be anything."""
    tier = read_tier("micro")
    runs = read_runs(ROOT / "results" / "reference" / "micro-intel", tier)
    table = compare(architecture(tier), tier, runs, costs.LENGTHS["micro"], 300)
    assert [(row["run"], row["what"]) for row in table] == [
        (method, what) for method in ("gfpo", "gtpo", "iapo") for what in ("training", "sampling")
    ]
    for row in table:
        assert 0.5 <= row["ratio"] <= 2, row


def test_the_command_plans_all_datasets_or_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    every = CliRunner().invoke(cli, ["plan", "--config", "qwen-7b"])
    assert every.exit_code == 0, every.output
    assert "Total: 282 jobs" in every.output
    assert "GPU-hours" in every.output
    for chosen in ("world.name=math500", "world={name: math500}"):
        one = CliRunner().invoke(cli, ["plan", "--config", "qwen-7b", "--set", chosen, "--length", "300"])
        assert "## math500: completions of 300 tokens, 196 test problems, 94 jobs" in one.output
        assert "gsm8k" not in one.output


def test_problems_of_ones_own_are_planned_once(tmp_path):
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(20)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(cli, ["plan", "--config", "qwen-0.5b", "--set", f"world.file={tmp_path / 'my.jsonl'}"])
    assert done.exit_code == 0, done.output
    assert done.output.count(" test problems, ") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "h1000"), "unknown device 'h1000': did you mean 'h100'"),
        (("--every-tier", "--device", "cpu"), "--every-tier plans each tier as it is: leave out --device"),
        (("--every-tier", "--config", "micro"), "--every-tier plans each tier as it is: leave out --config"),
        (("--every-tier", "--gpus", "4"), "--every-tier plans each tier as it is: leave out --gpus"),
        (("--calibrate", "nowhere"), "nowhere holds no METHOD/seed*/train.jsonl of micro"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = CliRunner().invoke(cli, ["plan", *arguments])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_cluster_is_asked_for_the_main_memory_that_training_takes():
    """By arithmetic, for every tier: vLLM's sleeping weights, the checkpoint that one rank gathers, the processes."""
    for name in list_tiers():
        tier = read_tier(name)
        parts = costs.host_memory(show.architecture(tier), tier)
        assert sum(parts.values()) <= tier.request("train").mem_mb * 1e6 / costs.GIB, (name, parts)
    large = costs.host_memory(show.architecture(read_tier("qwen-7b")), read_tier("qwen-7b"))
    assert "checkpoint" not in large, "each rank writes its own part"
    together = read_tier("qwen-7b", {"train": {"sharded": False}})
    assert costs.host_memory(show.architecture(together), together)["checkpoint"] == pytest.approx(99, rel=0.01)
    assert large["vllm asleep"] == pytest.approx(8 * 2 * 14.2, rel=0.01)


def test_a_cluster_is_asked_for_the_time_that_the_longest_job_takes():
    for tier in every_cell():
        size = show.architecture(tier)
        rows = time_table(
            tier, size, costs.lengths_of(tier.world.name), show.test_problems(tier), show.default_device(tier), None
        )
        for row in show.limits(tier, size, rows):
            assert row["minutes"] <= row["asked: minutes"], (tier.tier, tier.world.name, row)


def every_cell() -> list[TierConfig]:
    """Every tier, once for each of its datasets."""
    tiers = [(name, world) for name in list_tiers() for world in read_tier(name).datasets or [None]]
    return [read_tier(name, {"world": {"name": world}} if world else {}) for name, world in tiers]


def test_eight_gpus_share_a_step_and_each_is_paid_for_until_it_ends():
    """16 prompts a step on 8 GPUs: 2 groups each; arithmetic is shared, and a decode step's reading of the weights is
    not."""
    one, eight = (
        time_table(
            read_tier("qwen-7b", {"gpus": gpus}),
            ARCHITECTURES["qwen2.5-7b"],
            costs.LENGTHS["gsm8k"],
            1319,
            "h100",
            None,
        )
        for gpus in (1, 8)
    )
    for row, alone in zip(eight[1:-1], one[1:-1], strict=True):
        assert row["update h"] == pytest.approx(alone["update h"] / 8)
        assert row["signals h"] == pytest.approx(alone["signals h"] / 8)
        assert 0.9 < row["rollout h"] / alone["rollout h"] < 1
        training = row["rollout h"] + row["signals h"] + row["update h"]
        assert row["GPU-hours"] == pytest.approx(3 * (8 * training + row["sampling h"]))
    uneven = costs.training_work(read_tier("qwen-7b", {"train": {"prompts_per_step": 10}}), "grpo", costs.ASSUMED)
    assert costs.largest_share(uneven, 8).completions == uneven.completions // 5, "two of ten groups"


def test_what_is_measured_and_not_trained_is_planned_without_training():
    tier = read_tier("authors", {"world": {"name": "gsm8k"}, "train": {"engine": "transformers"}})
    text = plan([tier], device="h100", gpus=8)
    assert "1 checkpoint" in text
    assert "training" not in text
    rows = time_table(tier, show.architecture(tier), costs.LENGTHS["gsm8k"], 1319, "h100", None)
    assert [row["method"] for row in rows] == ["base", "authors", "all"]
    assert rows[-1]["GPU-hours"] == pytest.approx(2 * rows[0]["GPU-hours"])


def test_checkpoints_are_counted_by_steps_and_by_minutes():
    tier = read_tier("qwen-7b")
    assert costs.checkpoints(tier, 871, 18_000) == 10, "one each 30 minutes"
    assert costs.checkpoints(tier, 40, 18_000) == 4, "one each ten steps"
    short = read_tier("smoke-0.5b-gsm8k")
    space = costs.disk(show.architecture(short), short, 8, costs.LENGTHS["gsm8k"])
    assert space["checkpoints of a training job"] == 0, "its two steps end before the first"


def test_all_tiers_stand_in_one_table():
    text = show.overview([read_tier("micro"), read_tier("qwen-0.5b")])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    rows = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    assert [(row["tier"], row["device"], row["GPUs a job"]) for row in rows] == [
        ("micro", "cpu", "0"),
        ("qwen-0.5b", "h100", "1"),
    ]
    assert all(float(row["hours"]) > 0 for row in rows)


def test_a_dataset_of_which_nothing_is_known_is_planned_too(monkeypatch):
    tier = read_tier("smoke")
    monkeypatch.delitem(costs.LENGTHS, "micro")
    assert f"completions of {costs.ASSUMED.completion:g} tokens" in plan([tier], device="cpu", gpus=4)
