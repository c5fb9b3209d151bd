"""A look at the validation problems during training."""

import time
from typing import Any

from iapo_bench.config.train import TrainConfig
from iapo_bench.machine import parallel
from iapo_bench.rollout import RolloutEngine, Sampling
from iapo_bench.seeds import stream_seed
from iapo_bench.train.task import Task, Validation
from iapo_bench.worlds.grading import Outcome


def validate(looked: Validation, task: Task, engine: RolloutEngine, config: TrainConfig, seed: int) -> dict[str, Any]:
    """Accuracy, mean length (tokens) and seconds that it took. The random numbers are the same each time, so two
    validations differ by the weights alone."""
    started = time.perf_counter()
    own = parallel.share(len(looked.prompts))
    sampling = Sampling(
        max_tokens=config.max_tokens,
        eos_ids=task.eos_ids,
        temperature=config.temperature,
        seed=stream_seed(seed, "validation"),
        first_index=own.start,
    )
    drawn = engine.generate(looked.prompts[own], sampling)
    outcomes = parallel.gather(looked.grade(task.texts(drawn), looked.golds[own]))
    lengths = parallel.gather([len(completion.token_ids) for completion in drawn])
    return {
        "validation_correct": outcomes.count(Outcome.CORRECT) / len(outcomes),
        "validation_length": sum(lengths) / len(lengths),
        # Not part of the step's phases: validation is no cost of the method.
        "validation_seconds": round(time.perf_counter() - started, 6),
    }
