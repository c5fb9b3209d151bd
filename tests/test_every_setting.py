"""Each setting of each section changes the jobs that it should and nothing else; one without a case fails."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from iapo_bench.config.job import LARGE, BaseRequest, JobConfig, JobRequest
from iapo_bench.config.reading import merge, nest, read_yaml, section_of
from iapo_bench.config.section import identity, is_free
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import parse_tier
from iapo_bench.workflow import KINDS

TRIALS = [{"lr_times": 2.0, "updates_per_rollout": 3, "options": {"loss": {"kl_coef": 0.1}}}]
CONTENT = read_yaml(Path(__file__).parent / "golden" / "tier.yaml")[0] | {
    "model": {"source": "folder", "name": "golden"},
    "methods": {"gfpo": {"options": {"k": 2}}, "iapo": {}, "authors": {"checkpoint": "they/models"}},
    "ablations": {},
    "tune": {"candidates": {"gfpo": TRIALS, "iapo": TRIALS, "dapo": TRIALS}},
    "sensitivity": {"method": "iapo", "grid": {"alpha": [0.1, 0.2], "beta": [0.3]}},
    "lm_eval": {"tasks": ["arc"]},
    "prompt": {"example": {"question": "1 + 1?", "reply": "2"}},
}
CONTENT["train"] |= {"lora": {"rank": 3}}
JOBS = {
    "prepare": lambda tier: tier.prepare_job(),
    "base": lambda tier: tier.base_job(),
    "checkpoint": lambda tier: tier.checkpoint_job("authors"),
    "train": lambda tier: tier.train_job("gfpo", 0),
    "train another": lambda tier: tier.train_job("iapo", 0),
    "train trial": lambda tier: tier.train_job("gfpo", tier.tune.seed, trial=0),
    "train trial of another": lambda tier: tier.train_job("iapo", tier.tune.seed, trial=0),
    "sample": lambda tier: tier.sample_job("test"),
    "sample validation": lambda tier: tier.sample_job("validation"),
    "grade": lambda tier: tier.grade_job("test"),
    "lm_eval": lambda tier: tier.lm_eval_job(),
    "row": lambda tier: tier.row_job("gfpo"),
    "row of another": lambda tier: tier.row_job("iapo"),
    "row of the base": lambda tier: tier.row_job("base"),
    "row of a checkpoint": lambda tier: tier.row_job("authors"),
    "fidelity": lambda tier: tier.fidelity_job(["iapo"], {}),
    "protocol": lambda tier: tier.protocol_job(),
    "costs": lambda tier: tier.costs_job(),
    "timing": lambda tier: tier.timing_job(),
    "tokens": lambda tier: tier.tokens_job(),
    "calibration": lambda tier: tier.calibration_job(),
    "roles": lambda tier: tier.roles_job(),
    "tune": lambda tier: tier.tune_job(),
    "sensitivity": lambda tier: tier.sensitivity_job(),
    "labels": lambda tier: tier.labels,
}
OWN = {"train", "train trial", "timing"}  # training of the method that is changed
ALL = {*OWN, "train another", "train trial of another"}
ROWS = {"row", "row of another"}
EVERY_ROW = {*ROWS, "row of the base", "row of a checkpoint"}
LABELLED = {*EVERY_ROW, "fidelity", "protocol", "calibration", "roles", "labels", "timing", "tune", "sensitivity"}
PROMPTED = {*ALL, "base", "checkpoint", "sample", "sample validation", "lm_eval", "fidelity", "protocol"}
WORLD = {*PROMPTED, "prepare", "grade", "tokens", "calibration", "roles"}
READ = {*ALL, "fidelity"}
TRAINING = {*READ, *ROWS}  # rows say how they were trained
DRAWN = {"sample", "sample validation", "timing"}  # which rows say too
# By section: where it stands, the jobs that its settings go to, and for each setting another value than above; with
# other jobs where it goes to others, and other names that it has there.
CASES: dict[str, tuple[str, set[str], dict[str, Any]]] = {
    "TierConfig": (
        "",
        set(),
        {
            "tier": ("other", LABELLED),
            "seed": (5, WORLD | EVERY_ROW, "world_seed"),
            "gpus": (1, ALL),
            "datasets": ({"micro": {"train": {"clip_norm": 5.0}}}, TRAINING, "clip_norm"),
            "selection": ("published", ROWS),
            "methods": ({"dapo": {}}, {"timing", "costs", "tune"}, "dapo"),
            "ablations": ({"dapo": {}}, set()),
            "tuned": ({"gfpo": {"lr": 3.0}}, {"train", "timing", "row", "costs"}, "lr", "selection", "trials"),
            "given": ({"train": {"lr_schedule": "linear"}}, {*ALL, *ROWS}, "lr_schedule", "selection"),
        },
    ),
    "ModelConfig": (
        "model",
        {"base", *EVERY_ROW},
        {
            "source": "random:gpt2",
            "dtype": ("bfloat16", {*PROMPTED, *EVERY_ROW, "tokens", "calibration"} - {"checkpoint", "protocol"}),
            "name": ("other", {*LABELLED, "base"}, "model"),
            "sft": {"steps": 9},
        },
    ),
    "WorldConfig": (
        "world",
        WORLD | EVERY_ROW,
        {
            "name": ("gsm8k", WORLD | LABELLED, "dataset"),
            "file": ("b.jsonl", WORLD),
            "golds": "math",
            "data_dir": ("folder", WORLD),
            "options": {"n_train": 9},
            "splits": "published",
            "held_out": ["gsm8k"],
        },
    ),
    "PromptConfig": (
        "prompt",
        PROMPTED | EVERY_ROW,
        {"system": "Answer.", "example": "", "instruction": "Think.", "template": "{{ question }}\n"},
    ),
    "ExampleConfig": ("prompt.example", PROMPTED | EVERY_ROW, {"question": "2 + 2?", "reply": "4"}),
    "TrainConfig": (
        "train",
        TRAINING,
        {
            "completions": (90, {*TRAINING, "tune", "costs"} - {"timing"}),
            "prompts_per_step": (2, TRAINING, "completions"),
            "group_size": (3, TRAINING, "completions"),
            "max_tokens": 9,
            "temperature": (0.5, {*TRAINING, "tokens", "calibration"}),
            "lr": (0.1, {*TRAINING, "tune"}),
            "lr_schedule": "linear",
            "updates_per_rollout": (1, TRAINING - {"train trial", "train trial of another"}),
            "clip_norm": 9.0,
            "grader": "exact",
            "format_rule": "one_line",
            "max_draws": 1,
            "importance_cap": 0.5,
            "answer_stride": 2,
            "skip_answer": True,
            "problems": 3,
            "rewards": {"correct": 2.0},
            "engine": "vllm",
            "engine_deterministic": True,
            "engine_memory": (0.2, READ),
            "micro_batch_tokens": (77, {*READ, "tokens", "calibration"}),
            "rollout_batch_size": (7, READ),
            "sharded": (True, READ),
            "gradient_checkpointing": (True, READ),
            "checkpoint_every": (3, READ),
            "checkpoint_minutes": (2, READ),
            "seeds": ([3], READ, "seed"),
            "report_to": (["tensorboard"], READ - {"timing"}),
            "validate_every": (2, READ - {"timing"}),
            "validate_problems": (1, READ),
            "keep_rollouts": ([1], READ - {"timing"}),
        },
    ),
    "LoraConfig": ("train.lora", TRAINING, {"rank": 5, "alpha": 7.0}),
    "EvalConfig": (
        "evaluate",
        DRAWN | EVERY_ROW,
        {
            "also": (["math500"], DRAWN),
            "ks": ([1], {*EVERY_ROW, "sample", "protocol"}, "k"),
            "n_samples": (4, {"sample", *EVERY_ROW}),
            "seeds": ([4], {"sample", "timing", *EVERY_ROW}),
            "max_tokens": (9, {*DRAWN, *EVERY_ROW, "lm_eval"}),
            "temperature": 0.0,
            "top_p": 0.5,
            "batch_size": (7, {*DRAWN, "lm_eval"}),
            "engine": "vllm",
            "engine_deterministic": (True, {*DRAWN, *EVERY_ROW, "lm_eval"}),
            "engine_memory": (0.2, {*DRAWN, "lm_eval"}),
            "problems": (2, {*DRAWN, *EVERY_ROW, "lm_eval"}),
        },
    ),
    "LmEvalConfig": ("lm_eval", {"lm_eval"}, {"tasks": ["hellaswag"], "limit": 2, "backend": "vllm", "batch_size": 3}),
    "TuneConfig": (
        "tune",
        {"tune", "sensitivity"},
        {
            "n_samples": (20, {"sample validation"}),
            "k": (4, {"tune", "sensitivity", "sample validation"}, "ks"),
            "seed": (4, {"train trial", "train trial of another", "sample validation", "tune"}, "seeds"),
            "tolerance": 0.3,
            "candidates": ({"gfpo": [TRIALS[0] | {"lr_times": 3.0}]}, {"train trial", "tune"}, "lr"),
        },
    ),
    "Candidate": (
        "tune.candidates.gfpo.0",
        {"train trial", "tune"},
        {
            "lr_times": (3.0, {"train trial", "tune"}, "lr"),
            "updates_per_rollout": 5,
            "options": {"loss": {"kl_coef": 0.5}},
        },
    ),
    "MethodConfig": (
        "methods.gfpo",
        {*OWN, "row"},  # a trial wins over an entry
        {
            "method": ("dapo", {*OWN, "row", "costs", "tune"}, "name", "parent", "selection", "trials"),
            "checkpoint": ("they/others", {"checkpoint", "row of a checkpoint"}, "source"),
            "subfolder": ("deep", {"checkpoint", "row of a checkpoint"}),
            "profile": ("released", {*OWN, "row"}, "lr_schedule", "grader", "format_rule", "updates_per_rollout"),
            "lr": (0.25, {"train", "timing", "row"}),
            "updates_per_rollout": (5, {"train", "timing", "row"}),
            "lr_schedule": "linear",
            "grader": "exact",
            "format_rule": "one_line",
            "options": {"k": 3},
            "selection": ("validation", {"row of another"}),
        },
    ),
    "SensitivityConfig": (
        "sensitivity",
        {"sensitivity"},
        {"method": "grpo", "grid": {"alpha": [0.1, 0.2], "beta": [0.7]}},
    ),
}
# Where a setting stands elsewhere than its section does, and what must be so before it may change.
PLACES = {"checkpoint": "methods.authors", "subfolder": "methods.authors", "selection": "methods.iapo"}
NEEDED = {
    "engine_deterministic": {"train": {"engine": "vllm"}, "evaluate": {"engine": "vllm"}},
    "sharded": {"train": {"lora": None}},
    "file": {"world": {"name": "own", "file": "a.jsonl"}},
    "golds": {"world": {"name": "own", "file": "a.jsonl"}},
}
# The jobs that a setting identifies, where those are not all of them, or for a setting of no consequence not none.
IDENTIFIED = {
    "EvalConfig.ks": {*EVERY_ROW, "protocol"},
    "ModelConfig.name": LABELLED,
    "TrainConfig.seeds": {"timing"},
    "TuneConfig.k": {"tune", "sensitivity"},
}


def sections(section: type[BaseModel]) -> Iterator[tuple[str, dict[str, bool]]]:
    """Every section below one: its name, and of its own settings whether they can change a result."""
    own = {}
    for name, field in section.model_fields.items():
        below = section_of(field.annotation)
        if below:
            yield from sections(below)
        if not below or re.search(
            "dict|list|Literal", str(field.annotation)
        ):  # one of several, or one thing among others
            own[name] = not is_free(field)
    yield section.__name__, own


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Plain values by their path; an empty mapping has none."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    return {place: leaf for key, item in value.items() for place, leaf in leaves(item, (*path, str(key))).items()}


def differences(one: dict[str, Any], other: dict[str, Any]) -> set[tuple[str, ...]]:
    before, after = leaves(one), leaves(other)
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def changed(section: str, key: str, value: Any) -> dict[str, Any]:
    place = PLACES.get(key, CASES[section][0]) if section == "MethodConfig" else CASES[section][0]
    if section == "Candidate":  # stands in a list
        return {"tune": {"candidates": {"gfpo": [TRIALS[0] | {key: value}]}}}
    return nest(f"{place}.{key}".removeprefix("."), value)


TIER = parse_tier(CONTENT, source="test")
SECTIONS = dict(sections(TierConfig))
FLAT = [(section, key) for section, (_, _, cases) in CASES.items() for key in cases]


def test_every_setting_has_a_case():
    requests = {each.__name__ for each in (JobConfig, JobRequest, BaseRequest)}  # see below
    assert {name: set(own) for name, own in SECTIONS.items() if name not in requests} == {
        name: set(cases) for name, (_, _, cases) in CASES.items()
    }


class Asked:
    """A tier that notes what is asked of it."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(TIER, name)


def test_every_job_is_looked_at():
    asked = Asked()
    for make in JOBS.values():
        make(asked)
    assert {name for name in vars(TierConfig) if name.endswith("_job")} <= asked.names


@pytest.mark.parametrize(("section", "key"), FLAT, ids=[f"{section}.{key}" for section, key in FLAT])
def test_a_setting_changes_the_jobs_that_it_should_and_nothing_else(section, key):
    _, jobs, cases = CASES[section]
    case = cases[key] if isinstance(cases[key], tuple) else (cases[key],)
    value, jobs, names = case[0], case[1] if len(case) > 1 else jobs, {key, *case[2:]}
    content = merge(CONTENT, NEEDED.get(key, {}))
    before, after = (parse_tier(merge(content, new), source="test") for new in ({}, changed(section, key, value)))
    told, identified = {}, {}
    for job, make in JOBS.items():
        one, other = make(before), make(after)
        told[job] = differences(one.model_dump(), other.model_dump())
        identified[job] = differences(identity(one), identity(other))
    assert {job for job in JOBS if told[job]} == jobs
    expected = IDENTIFIED.get(f"{section}.{key}", jobs if SECTIONS[section][key] else set())
    assert {job for job in JOBS if identified[job]} == expected
    for job in JOBS:
        assert not [path for path in told[job] | identified[job] if not names & set(path)], job


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", JobRequest.model_fields)
def test_a_request_is_that_of_its_kind_of_job(kind, key):
    after = parse_tier(CONTENT | {"job": {kind: {key: 77}}}, source="test")
    for other in KINDS:
        wanted = TIER.request(other).model_copy(update={key: 77} if other == kind else {})
        assert after.request(other) == wanted
    assert all(make(after) == make(TIER) for make in JOBS.values())


@pytest.mark.parametrize("key", JobRequest.model_fields)
def test_a_request_of_all_is_that_of_the_jobs_that_load_the_model(key):
    after = parse_tier(CONTENT | {"job": {key: 77}}, source="test")
    for kind in KINDS:
        own = getattr(getattr(TIER.job, kind), key)
        wanted = TIER.request(kind).model_copy(update={key: 77} if kind in LARGE and not own else {})
        assert after.request(kind) == wanted
