"""Two processes are one: the same draws, rows and weights, whoever starts, stops, resumes or has nothing to do."""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import become, run_ranks
from test_trainer import METHODS, coin_grade, rare_grade, untimed
from test_trainer import SETTINGS as TRAINER_SETTINGS

from iapo_bench.config.lora import LoraConfig
from iapo_bench.config.train import TrainConfig
from iapo_bench.errors import UserError
from iapo_bench.machine import parallel
from iapo_bench.machine.resume import is_sound
from iapo_bench.method import load_method
from iapo_bench.models import sharding
from iapo_bench.models.checkpoints import build_micro
from iapo_bench.models.lora import add_lora
from iapo_bench.rollout import Completion
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.train.task import Task
from iapo_bench.train.trainer import Trainer
from iapo_bench.worlds import POSTFIX
from iapo_bench.worlds.datasets.micro import MicroWorld, build_tokenizer

# Steps so small that Adam does not blow up rounding where a gradient is almost 0.
SETTINGS = TRAINER_SETTINGS.model_copy(update={"lr": 3e-4})


@dataclass(frozen=True)
class Case:
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: TrainConfig = SETTINGS
    grade: Any = coin_grade
    sharded: bool = False
    checkpointing: bool = False
    adapters: bool = False
    dtype: torch.dtype = torch.float32


def several_updates(count: int) -> TrainConfig:
    return SETTINGS.model_copy(update={"updates_per_rollout": count})


CASES = {
    **{method: Case(method, options) for method, options in METHODS.items()},
    "gtpo, statistics of the batch": Case("gtpo", {"scope": "batch"}),
    "dapo, several draws and updates": Case(
        "dapo", settings=several_updates(2).model_copy(update={"completions": 144}), grade=rare_grade
    ),
    "KL, entropy bonus and capped weights": Case(
        "grpo",
        {"loss": {"kl_coef": 0.1, "entropy_coef": 0.01}},
        SETTINGS.model_copy(update={"importance_cap": 2.0}),
    ),
    "an odd number of groups": Case("gtpo", {}, SETTINGS.model_copy(update={"prompts_per_step": 3, "completions": 36})),
    "adapters": Case("iapo", METHODS["iapo"], adapters=True),
    "a share is empty": Case("gtpo", {}, SETTINGS.model_copy(update={"prompts_per_step": 1, "completions": 12})),
    "a share of every update is empty": Case("grpo", {}, several_updates(4)),
}
# Many small parts, of which one rank has more than the other: those of a sharded update must go in step.
RAGGED = SETTINGS.model_copy(update={"micro_batch_tokens": 40})
SHARDED = {
    **{f"{name}, sharded": replace(case, sharded=True) for name, case in CASES.items() if not case.adapters},
    "many small parts, sharded": Case("iapo", METHODS["iapo"], RAGGED, sharded=True),
    "activations computed twice, sharded": Case("iapo", METHODS["iapo"], sharded=True, checkpointing=True),
}
CASES |= SHARDED
ROUNDED = Case("iapo", METHODS["iapo"], sharded=True, dtype=torch.bfloat16)
RESUMED = "gfpo"  # has a state of its own
KINDS = ("", ", sharded")
STEP = SETTINGS.model_copy(update={"completions": SETTINGS.prompts_per_step * SETTINGS.group_size})


def make_trainer(case: Case) -> Trainer:
    tokenizer, world = build_tokenizer(), MicroWorld(n_train=40, n_validation=12, n_test=12)
    problems = world.load("train")
    task = Task(
        prompts=[world.encode_prompt(problem, tokenizer) for problem in problems],
        golds=[problem.answer for problem in problems],
        grade=case.grade,
        tokenizer=tokenizer,
        eos_ids=(1, 7, 8),  # an untrained model must end sometimes, too
        postfix_ids=tokenizer(POSTFIX).input_ids,
    )
    model, reference = (build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1) for _ in range(2))
    model, reference = model.to(case.dtype), reference.to(case.dtype)
    if case.adapters:
        add_lora(model, LoraConfig(rank=4, alpha=8.0), seed=0)
        reference = model
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if case.sharded:
        sharding.shard(model)
        sharding.shard(reference)
    method = load_method(case.method, **case.options)
    return Trainer(method, case.settings, 0, task, model, TransformersEngine(model), reference.eval())


def run(case: Case, state: Path | None = None) -> dict[str, Any]:
    """Rows without times, weights, and what each call of the engine gave this process."""
    trainer = make_trainer(case)
    generate, drawn = trainer.engine.generate, []

    def recorded(*arguments: Any) -> list[Completion]:
        drawn.append(generate(*arguments))
        return drawn[-1]

    trainer.engine.generate = recorded
    rows = trainer.run(state)
    with sharding.whole(trainer.model) as model:
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return {
        "rows": [json.loads(row) for row in untimed(rows).splitlines()],
        "weights": weights,
        "held": sum(
            w.to_local().numel() if sharding.is_sharded(trainer.model) else w.numel()
            for w in trainer.model.parameters()
        ),
        "drawn": [[completion.token_ids for completion in call] for call in drawn],
    }


@cache
def alone(name: str) -> dict[str, Any]:
    """The case in this process."""
    return run(CASES[name])


def fail_second_time(texts: list[str], golds: list[str]) -> list:
    """A grader that fails on rank 1, after a step that went well."""
    if parallel.rank() == 1 and (Path(os.environ["PARALLEL_TEST"]) / "failing").exists():
        raise UserError("the grader is gone")
    if parallel.rank() == 1:
        (Path(os.environ["PARALLEL_TEST"]) / "failing").touch()
    return coin_grade(texts, golds)


DAMAGES = {
    "a bit": lambda state: flip(state / "__1_0.distcp"),
    "the description": lambda state: flip(state / ".metadata"),
    "a part that is gone": lambda state: (state / "__1_0.distcp").unlink(),
    "the rest is gone": lambda state: (state / "rest.pt").unlink(),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def find_damaged(folder: Path) -> dict[str, tuple[int, bool]]:
    """At which step a sharded run goes on when its newest state is damaged, and whether with that step's weights."""
    case = CASES[RESUMED + ", sharded"]
    trainer, found, weights = make_trainer(case), {}, []
    for _ in range(2):
        trainer.step()
        trainer._save(folder / "whole" / "state")
        weights.append([weight.to_local().clone() for weight in trainer.model.parameters()])
    for name, damage in {"nothing": lambda state: None, **DAMAGES}.items():
        if parallel.is_main():
            shutil.copytree(folder / "whole", folder / name)
            damage(folder / name / "state")
        parallel.gather([])
        resumed = make_trainer(case)
        resumed._resume(folder / name / "state")
        step = len(resumed.rows)
        pairs = zip(resumed.model.parameters(), weights[step - 1], strict=True)
        found[name] = step, all(torch.equal(weight.to_local(), wanted) for weight, wanted in pairs)
    return found


def count_workers() -> int:
    """Threads of this process that carry out gloo's collectives."""
    return sum(path.read_text() == "pt_gloo_runloop\n" for path in Path("/proc/self/task").glob("*/comm"))


def work(rank: int, folder: Path, ports: tuple[int, int]) -> None:
    """What each of the two processes does: all cases, and then a run in which rank 1 fails."""
    become(rank, ports[0])
    os.environ["PARALLEL_TEST"] = str(folder)
    with parallel.processes():
        results = {name: run(case) for name, case in CASES.items()} | {"rounded": run(ROUNDED)}
        for kind in KINDS:
            run(replace(CASES[RESUMED + kind], settings=STEP), folder / f"of-two{kind}.pt")
        for kind in KINDS:
            shutil.copy(folder / "of-one.pt", folder / f"of-one{kind}-{rank}.pt")
            results[f"resumed{kind}"] = run(CASES[RESUMED + kind], folder / f"of-one{kind}-{rank}.pt")
        results["found"] = find_damaged(folder)
        results["workers"] = count_workers()
        torch.save(results, folder / f"{rank}.pt")
    os.environ["MASTER_PORT"] = str(ports[1])
    try:
        with parallel.processes():
            run(Case("grpo", grade=fail_second_time))
    except UserError as error:
        (folder / f"{rank}.error").write_text(str(error))
        sys.exit(2)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, Any]:
    """Results of both ranks, their exit codes and last errors."""
    folder = tmp_path_factory.mktemp("two")
    run(replace(CASES[RESUMED], settings=STEP), folder / "of-one.pt")
    codes = run_ranks(work, folder, ports=2)
    assert codes == [2, 2], "both processes end, and the last run is an error for both"
    return {
        "folder": folder,
        "ranks": [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)],
        "errors": [(folder / f"{rank}.error").read_text() for rank in range(2)],
    }


def assert_same_run(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(got["rows"]) == len(expected["rows"])
    for row, wanted in zip(got["rows"], expected["rows"], strict=True):
        assert row["outcomes"] == wanted["outcomes"]
        assert row.keys() == wanted.keys()
        for key in row.keys() - {"outcomes"}:
            close = None if wanted[key] is None else pytest.approx(wanted[key], rel=1e-4, abs=1e-6)
            assert row[key] == close, key
    for name, weight in expected["weights"].items():
        # AdamW divides a gradient by its size, so the rounding of a tiny one moves a weight by a share of lr.
        torch.testing.assert_close(got["weights"][name], weight, atol=0.1 * SETTINGS.lr, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(two, name):
    expected = alone(name)
    assert len(expected["rows"]) >= 3
    assert any(row["grad_norm"] > 0 for row in expected["rows"] if "grad_norm" in row), "there is something to learn"
    assert_same_run(two["ranks"][0][name], expected)


@pytest.mark.parametrize("name", CASES)
def test_both_processes_end_with_the_same_bits(two, name):
    first, second = (rank[name] for rank in two["ranks"])
    assert first["rows"] == second["rows"]
    for key, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][key])


def test_each_process_draws_its_part_of_what_one_would(two):
    first, second = (rank["grpo"]["drawn"] for rank in two["ranks"])
    assert len(first) == len(second) == 3
    assert [a + b for a, b in zip(first, second, strict=True)] == alone("grpo")["drawn"]
    assert all(a != b for a, b in zip(first, second, strict=True))
    odd = [[len(call) for call in rank["an odd number of groups"]["drawn"]] for rank in two["ranks"]]
    assert odd == [[8, 8, 8], [4, 4, 4]]
    assert two["ranks"][1]["a share is empty"]["drawn"] == [[], [], []]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_two_processes_is_resumed_by_one(two, kind):
    assert_same_run(run(CASES[RESUMED], two["folder"] / f"of-two{kind}.pt"), alone(RESUMED))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_one_process_is_resumed_by_two(two, kind):
    assert_same_run(two["ranks"][0][f"resumed{kind}"], alone(RESUMED))


def test_each_process_writes_its_part_of_a_sharded_state(two):
    """None gathers the whole; every file ends with its checksum."""
    state = two["folder"] / "whole" / "state"
    files = {path.name: path for path in state.iterdir()}
    assert files.keys() == {".metadata", "rest.pt", "__0_0.distcp", "__1_0.distcp"}
    assert all(map(is_sound, files.values()))
    first, second = (files[f"__{rank}_0.distcp"].stat().st_size for rank in range(2))
    assert 0.8 < first / second < 1.25


@pytest.mark.parametrize("damage", ["nothing", *DAMAGES])
def test_a_damaged_sharded_state_falls_back_to_the_one_before(two, damage):
    """On all ranks, though one alone has read what is damaged."""
    expected = (2 if damage == "nothing" else 1, True)
    assert [rank["found"][damage] for rank in two["ranks"]] == [expected, expected]


def test_a_sharded_run_in_bfloat16(two):
    """Sums of ranks round otherwise than those of one process; draws and what is learnt stay."""
    got, expected = two["ranks"][0]["rounded"], run(ROUNDED)
    for row, wanted in zip(got["rows"], expected["rows"], strict=True):
        assert row["outcomes"] == wanted["outcomes"]
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.02)
    start = dict(make_trainer(ROUNDED).model.named_parameters())
    mine, theirs = (
        torch.cat([(run["weights"][name] - weight.detach()).float().flatten() for name, weight in start.items()])
        for run in (got, expected)
    )
    assert torch.cosine_similarity(mine, theirs, dim=0) > 0.95


def test_a_sharded_run_holds_each_weight_once(two):
    whole = alone("grpo")["held"]
    assert [rank["grpo"]["held"] for rank in two["ranks"]] == [whole, whole]
    assert sum(rank["grpo, sharded"]["held"] for rank in two["ranks"]) == whole


def test_a_rank_that_fails_ends_the_others(two):
    """In time, and with a line for the user each."""
    first, second = two["errors"]
    assert second == "the grader is gone"
    assert "lost contact" in first
    assert "\n" not in first


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
def test_collectives_end_one_after_the_other(two):
    """Two of gloo's threads free the name of the last one twice when both end one at once."""
    assert [rank["workers"] for rank in two["ranks"]] == [1, 1]
