"""A training step of IAPO against one of GRPO, by phase: of the micro tier, or at the size of a real model."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import trange
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iapo_bench.bench.informativeness import synchronise
from iapo_bench.config.tier_file import read_tier
from iapo_bench.config.train import TrainConfig
from iapo_bench.machine.provenance import hardware
from iapo_bench.method import Method, Signal, load_method
from iapo_bench.models.architectures import Architecture
from iapo_bench.models.checkpoints import accelerator, eos_ids, load_model, load_tokenizer
from iapo_bench.plan.costs import DEVICES, Lengths, Work, flops
from iapo_bench.plan.show import architecture
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.train.run import answer_reading
from iapo_bench.train.task import Task
from iapo_bench.train.trainer import PHASES, Trainer
from iapo_bench.worlds import POSTFIX
from iapo_bench.worlds.grading import Outcome, make_grader
from iapo_bench.worlds.load import load_world

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # method, and changes to the tier's `train` section
    "grpo": ("grpo", {}),
    "iapo": ("iapo", {}),
    "iapo, not in the answer": ("iapo", {"skip_answer": True}),
    "iapo, every 4th prefix": ("iapo", {"answer_stride": 4}),
}
TARGET = 1.35
WORKED = ("signals", "update")  # phases of large passes, whose share of the peak says something


class _WaitingEngine(TransformersEngine):
    """Waits for the device at the end of the update phase, which would otherwise end once its work is queued."""

    def sync(self, model: PreTrainedModel) -> None:
        super().sync(model)
        synchronise(model.device)


def bench_step(base: Path, *, pairs: int) -> list[dict[str, Any]]:
    """Medians over interleaved steps of the micro tier's size, on the GPU if there is one; `ratio` is to the GRPO step
    taken next to it, `floor_*` the seconds that a phase's multiply-adds alone would take at the rate of a plain matrix
    product of the model's shapes, timed between the steps."""
    tier = read_tier("micro")
    world = load_world(tier.world, tier.seed)
    tokenizer = load_tokenizer(base)
    problems = world.load("train")
    prompts = [world.encode_prompt(problem, tokenizer) for problem in problems]

    def trainer(name: str) -> Trainer:
        method, changes = VARIANTS[name]
        model = load_model(base).to(accelerator())
        settings = TrainConfig(
            **{
                **tier.train.model_dump(),
                "completions": 10**9,
                "lr": 1e-9,  # keeps the policy as it is, so that all steps generate alike
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
        reference = load_model(base).to(accelerator())
        return Trainer(load_method(method), settings, 0, task, model, _WaitingEngine(model), reference)

    trainers = {name: trainer(name) for name in VARIANTS}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    works: dict[str, list[Work]] = {name: [] for name in VARIANTS}
    prompt = statistics.mean(map(len, prompts))
    rates = []
    size = architecture(tier)
    for pair in trange(pairs + 1, desc="step", unit="pair"):
        rates.append(_product_rate(trainers["grpo"].model, tier.train.micro_batch_tokens))
        for name, run in trainers.items():
            row = run.step()
            if pair:
                rows[name].append({phase: row[f"seconds_{phase}"] for phase in PHASES})
                works[name].append(_step_work(run, Lengths(prompt, row["length"], len(run.task.postfix_ids))))
    totals = {name: [sum(row.values()) for row in steps] for name, steps in rows.items()}
    table = []
    for name, steps in rows.items():
        ratios = [mine / grpo for mine, grpo in zip(totals[name], totals["grpo"], strict=True)]
        counted = [flops(size, work) for work in works[name]]
        one, rate = works[name][0], statistics.median(rates)
        floors = {phase: one.completions * statistics.median(c[phase] for c in counted) / rate for phase in counted[0]}
        exact = name in ("grpo", "iapo")  # the other variants read fewer prefixes than are counted
        table.append(
            {
                "step": name,
                **{f"seconds_{phase}": round(statistics.median(s[phase] for s in steps), 4) for phase in PHASES},
                **{f"floor_{phase}": round(floor, 4) if exact else None for phase, floor in floors.items()},
                "seconds": round(statistics.median(totals[name]), 4),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "target": TARGET if name == "iapo" else None,
                "pairs": pairs,
                "gflops": round(rate / 1e9, 1),
                "threads": torch.get_num_threads(),
                "device": hardware(),
            }
        )
    return table


def _step_work(run: Trainer, lengths: Lengths) -> Work:
    """The work of one step of a trainer on completions of these mean lengths."""
    step = run.config.prompts_per_step * run.config.group_size
    return Work(
        completions=step,
        step=step,
        batch=step,
        group=run.config.group_size,
        lengths=lengths,
        max_tokens=run.config.max_tokens,
        **_passes(run.method),
    )


def _passes(method: Method) -> dict[str, bool]:
    """The passes that `Work` counts: with answer entropies, one of their K + 1 passes serves the other signals too."""
    answer = Signal.ANSWER_ENTROPY in method.needs
    return {
        "answer": answer,
        "policy": bool(method.needs) and not answer,
        "reference": bool(method.loss.kl_coef),
    }


def _product_rate(model: PreTrainedModel, tokens: int) -> float:
    """FLOP/s of the product of `tokens` states with the weights of the model's first MLP, the best of twenty."""
    weight = next(w for name, w in model.named_parameters() if "mlp" in name and w.dim() == 2).detach()
    states = torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        synchronise(model.device)
        best = min(best, time.perf_counter() - started)
    return 2 * tokens * weight.numel() / best


def bench_step_at_size(
    model: PreTrainedModel,
    size: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    lengths: Lengths,
    prompts_per_step: int,
    group_size: int,
    micro_batch_tokens: int,
) -> list[dict[str, Any]]:
    """A row for GRPO and one for IAPO: median seconds of `steps` steps by phase after a warm-up step, peak GiB, and the
    arithmetic of signals and update (`costs.flops`) over their time: TFLOP/s, and the share of the device's published
    peak where it is known.

    Every prompt has `lengths.prompt` random tokens and every completion the `lengths.completion` tokens of the limit.
    The model is its own reference: the learning rate is too small to move it.
    """
    prompt, completion, postfix = int(lengths.prompt), int(lengths.completion), lengths.postfix
    draws = torch.Generator().manual_seed(0)
    # Draw from the tokenizer's own ids: a random model's may go beyond them, which decoding passes over.
    ids = torch.randint(3, len(tokenizer), (2 * prompts_per_step + 1, prompt), generator=draws).tolist()
    dtype = str(model.dtype).removeprefix("torch.")
    rows = []
    for name in ("grpo", "iapo"):
        config = TrainConfig(
            completions=10**9,
            prompts_per_step=prompts_per_step,
            group_size=group_size,
            max_tokens=completion,
            lr=1e-12,
            micro_batch_tokens=micro_batch_tokens,
        )
        task = Task(
            prompts=ids[:-1],
            golds=[""] * (len(ids) - 1),
            grade=lambda texts, golds: [(Outcome.WRONG, Outcome.CORRECT)[i % 2] for i in range(len(texts))],
            tokenizer=tokenizer,
            eos_ids=(),
            postfix_ids=ids[-1][:postfix],
        )
        method = load_method(name)
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        trainer = Trainer(method, config, 0, task, model, _WaitingEngine(model), model)
        taken = [trainer.step() for _ in trange(steps + 1, desc=name, unit="step")][1:]
        seconds = {phase: statistics.median(row[f"seconds_{phase}"] for row in taken) for phase in PHASES}
        number = prompts_per_step * group_size
        work = _step_work(trainer, lengths)
        rate = {
            phase: number * flops(size, work)[phase] / seconds[phase] / 1e12
            for phase in WORKED
            if flops(size, work)[phase]
        }
        peak = _peak_flops(dtype)
        rows.append(
            {
                "step": name,
                **{f"seconds_{phase}": round(seconds[phase], 4) for phase in PHASES},
                "seconds": round(sum(seconds.values()), 4),
                "rollout_tokens_per_second": round(number * completion / seconds["rollout"], 1),
                **{f"tflops_{phase}": round(rate[phase], 3) if phase in rate else None for phase in WORKED},
                **{
                    f"share_of_peak_{phase}": round(rate[phase] * 1e12 / peak, 4) if peak and phase in rate else None
                    for phase in WORKED
                },
                "peak_gib": round(torch.cuda.max_memory_allocated(model.device) / 2**30, 2)
                if model.device.type == "cuda"
                else None,
                "completions": number,
                "prompt": prompt,
                "T": completion,
                "K": postfix,
                "steps": steps,
                "dtype": dtype,
                "device": hardware(),
            }
        )
        del trainer
    return rows


def _peak_flops(dtype: str) -> float | None:
    """Peak of the GPU in use, by its name; None on a CPU and for a GPU that `costs.DEVICES` does not know."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    return next((device.flops[dtype] for key, device in DEVICES.items() if key in name), None)
