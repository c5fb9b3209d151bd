"""One GRPO step of this suite's core for each line on standard input; run by `iapo-bench bench core`."""

import json
import sys
import time
from pathlib import Path

import torch

from iapo_bench.config.train import TrainConfig
from iapo_bench.method import load_method
from iapo_bench.models.checkpoints import eos_ids, load_model, load_tokenizer
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.train.task import Task
from iapo_bench.train.trainer import Trainer
from iapo_bench.worlds.grading import make_grader


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    replies = sys.stdout
    sys.stdout = sys.stderr
    model, tokenizer = load_model(Path(job["model"])), load_tokenizer(Path(job["model"]))
    config = TrainConfig(
        completions=job["steps"] * job["completions"],
        prompts_per_step=job["completions"] // job["group_size"],
        group_size=job["group_size"],
        max_tokens=job["max_tokens"],
        micro_batch_tokens=job["micro_batch_tokens"],
        lr=job["lr"],
    )
    task = Task(
        prompts=[tokenizer(problem["prompt"]).input_ids for problem in job["problems"]],
        golds=[problem["gold"] for problem in job["problems"]],
        grade=make_grader("digits").grade,
        tokenizer=tokenizer,
        eos_ids=() if job["to_the_cap"] else eos_ids(model, tokenizer),
        postfix_ids=[],
    )
    method = load_method("grpo", loss={"kl_coef": 0.0})
    trainer = Trainer(method, config, 0, task, model, TransformersEngine(model))
    for _ in range(job["steps"]):
        sys.stdin.readline()
        started = time.perf_counter()
        row = trainer.step()
        reply = {
            "seconds": time.perf_counter() - started,
            "tokens": row["tokens"],
            **{key: value for key, value in row.items() if key.startswith("seconds_")},
        }
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
