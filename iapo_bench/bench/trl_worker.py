"""One TRL GRPO step for each line on standard input; run by `iapo-bench bench core` in TRL's own environment.

It imports nothing of this package: the other environment does not have it.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    replies = sys.stdout
    sys.stdout = sys.stderr  # what the trainer prints must not mix with the replies
    counted = {"tokens": 0}

    def reward(completions: list[str], gold: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        counted["tokens"] = sum(map(len, completion_ids))
        answers = [text.partition("<answer>")[2].partition("</answer>")[0].replace(" ", "") for text in completions]
        return [1.0 if answer == right else -1.0 for answer, right in zip(answers, gold, strict=True)]

    class Paced(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            sys.stdin.readline()
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            reply = {"seconds": time.perf_counter() - self.started, "tokens": counted["tokens"]}
            print(json.dumps(reply), file=replies, flush=True)

    arguments = GRPOConfig(
        output_dir=job["scratch"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["completions"] // job["micro_batch"],
        num_generations=job["group_size"],
        max_completion_length=job["max_tokens"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        max_steps=job["steps"],
        logging_steps=10**9,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        generation_kwargs={"min_new_tokens": job["max_tokens"]} if job["to_the_cap"] else None,
    )
    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(job["problems"]),
        callbacks=[Paced()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
