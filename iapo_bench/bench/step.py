"""A training step of IAPO against a GRPO step, and where the time goes."""

import statistics
from pathlib import Path
from typing import Any

import torch
from tqdm import trange

from iapo_bench.config import TrainConfig, read_tier
from iapo_bench.grading import make_grader
from iapo_bench.method import load_method
from iapo_bench.models import eos_ids, load_model, load_tokenizer
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.stages import answer_reading, train_settings
from iapo_bench.trainer import PHASES, Task, Trainer
from iapo_bench.worlds import POSTFIX
from iapo_bench.worlds.load import load_world

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # method, and changes to the tier's `train` section
    "grpo": ("grpo", {}),
    "iapo": ("iapo", {}),
    "iapo, not in the answer": ("iapo", {"skip_answer": True}),
    "iapo, every 4th prefix": ("iapo", {"answer_stride": 4}),
}
TARGET = 1.5


def bench_step(base: Path, *, pairs: int) -> list[dict[str, Any]]:
    """Medians over interleaved steps of the micro tier's size; `ratio` is to the GRPO step taken next to it."""
    tier = read_tier("micro")
    world = load_world(tier.world, tier.seed)
    tokenizer = load_tokenizer(base)
    problems = world.load("train")
    prompts = [world.encode_prompt(problem, tokenizer) for problem in problems]

    def trainer(name: str) -> Trainer:
        method, changes = VARIANTS[name]
        model = load_model(base)
        settings = TrainConfig(
            **{
                **tier.train.model_dump(),
                "completions": 10**9,
                "lr": 1e-9,  # the policy stays what it is, so that every step generates alike
                **changes,
            }
        )
        task = Task(
            prompts=prompts,
            golds=[problem.answer for problem in problems],
            grade=make_grader(world.grader).grade,
            tokenizer=tokenizer,
            eos_ids=eos_ids(model, tokenizer),
            postfix_ids=tokenizer(POSTFIX, add_special_tokens=False).input_ids,
            reading=answer_reading(settings, tokenizer),
        )
        engine = TransformersEngine(model)
        return Trainer(load_method(method), train_settings(settings, seed=0), task, model, engine, load_model(base))

    trainers = {name: trainer(name) for name in VARIANTS}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for pair in trange(pairs + 1, desc="step", unit="pair"):
        for name, run in trainers.items():
            row = run.step()
            if pair:
                rows[name].append({phase: row[f"seconds_{phase}"] for phase in PHASES})
    totals = {name: [sum(row.values()) for row in steps] for name, steps in rows.items()}
    table = []
    for name, steps in rows.items():
        ratios = [mine / grpo for mine, grpo in zip(totals[name], totals["grpo"], strict=True)]
        table.append(
            {
                "step": name,
                **{f"seconds_{phase}": round(statistics.median(s[phase] for s in steps), 4) for phase in PHASES},
                "seconds": round(statistics.median(totals[name]), 4),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "target": TARGET if name == "iapo" else None,
                "pairs": pairs,
                "threads": torch.get_num_threads(),
            }
        )
    return table
