"""The check of determinism, for each device: it needs a process of its own, whose settings no other test sees."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from iapo_bench.config.train import TrainConfig
from iapo_bench.method import load_method
from iapo_bench.models.checkpoints import build_micro, eos_ids
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.train.task import Task
from iapo_bench.train.trainer import Trainer
from iapo_bench.worlds import POSTFIX
from iapo_bench.worlds.datasets.micro import MicroWorld, build_tokenizer
from iapo_bench.worlds.grading import make_grader

ROOT = Path(__file__).parent.parent.parent


def check_determinism(device: str, folder: Path) -> None:
    """Two runs of a seed in deterministic mode write the same rows and end with the same weights."""
    # cuBLAS is deterministic with a fixed workspace only, and reads this once.
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": path}
    command = [sys.executable, "-m", "gpu.determinism", device, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((folder / f"{name}.jsonl").read_text() for name in ("first", "second"))
    rows = [json.loads(line) for line in first.splitlines()]
    assert len(rows) == 4
    assert rows[0]["grad_norm"] > 0
    assert first == second


def train_twice(device: str, folder: Path) -> None:
    """Write `first.jsonl` and `second.jsonl`: the rows, but for the times, and weights of two runs of one seed."""
    tokenizer = build_tokenizer()
    world = MicroWorld(n_train=40, n_validation=12, n_test=12)
    problems = world.load("train")
    config = TrainConfig(
        completions=96, prompts_per_step=4, group_size=8, max_tokens=48, lr=1e-3, micro_batch_tokens=512
    )
    for name in ("first", "second"):
        model = build_micro(tokenizer, hidden=64, layers=2, heads=2, seed=1).to(device)
        task = Task(
            prompts=[world.encode_prompt(problem, tokenizer) for problem in problems],
            golds=[problem.answer for problem in problems],
            grade=make_grader(world.grader).grade,
            tokenizer=tokenizer,
            eos_ids=eos_ids(model, tokenizer),
            postfix_ids=tokenizer(POSTFIX, add_special_tokens=False).input_ids,
        )
        method = load_method("iapo", loss={"entropy_coef": 0.01, "kl_coef": 0.001})
        reference = copy.deepcopy(model)
        trainer = Trainer(method, config, 0, task, model, TransformersEngine(model), reference)
        rows = trainer.run()
        lines = [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per"))} for row in rows]
        lines.append({n: [float(p.double().sum()), float(p.double().norm())] for n, p in model.named_parameters()})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":  # a process of its own: the setting is for all of a process
    # Only a warning for cumulative sums, of which torch does not promise it: the two runs show whether it holds.
    torch.use_deterministic_algorithms(True, warn_only=True)
    train_twice(sys.argv[1], Path(sys.argv[2]))
