"""One training run, from files to files."""

import shutil
from pathlib import Path

import click
from transformers import PreTrainedTokenizerBase

from iapo_bench.config import TierConfig, TrainConfig, digest
from iapo_bench.files import to_json, whole_file
from iapo_bench.machine import parallel
from iapo_bench.machine.provenance import write_provenance
from iapo_bench.method import load_method
from iapo_bench.models import sharding
from iapo_bench.models.checkpoints import (
    accelerator,
    load_model,
    load_tokenizer,
    save_model,
    stop_ids,
    torch_dtype,
    weights_checksum,
)
from iapo_bench.models.lora import LoraSettings, add_lora
from iapo_bench.rollout.load import make_engine
from iapo_bench.rollout.prompts import encode
from iapo_bench.signals.informativeness import AnswerReading
from iapo_bench.train.trainer import Task, Trainer, TrainSettings
from iapo_bench.train.update import UpdateSettings
from iapo_bench.worlds import POSTFIX, THINK_CLOSE, read_problems
from iapo_bench.worlds.grading import make_grader
from iapo_bench.worlds.load import load_world


@parallel.processes()
def train(
    tier: TierConfig, method: str, *, base: Path, data: Path, seed: int, out: Path, trial: int | None = None
) -> None:
    """Train one method from `base` and write `out/model`, `out/train.jsonl` and `out/provenance.json`.

    What is needed to go on after an interruption lies in `out/resume`, under a name that other settings cannot match.
    """
    settings = tier.training_slice(method, trial)
    config = TrainConfig(**settings["train"])
    world = load_world(tier.world, tier.seed)
    chosen = settings["method"]
    credit = load_method(chosen["name"], chosen["profile"], **chosen["options"])
    if parallel.is_main() and (idle := credit.loss.idle_choices(config.updates_per_rollout)):
        click.echo(
            f"warning: {method}: {', '.join(idle)} of the loss change nothing with train.updates_per_rollout = 1, "
            "where the policy is the one that sampled: set it to 2 or more",
            err=True,
        )
    problems = read_problems(data / "train.jsonl")[: config.problems]
    dtype = torch_dtype(tier.model.dtype)
    model = load_model(base, dtype=dtype).to(accelerator())
    if config.lora:
        add_lora(model, LoraSettings(**config.lora.model_dump()), seed)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokenizer = load_tokenizer(base)
    dialogue = world.dialogue(tokenizer, tier.prompt)
    prompts = encode(problems, dialogue, base, config.max_tokens)
    reference = None
    if credit.loss.kl_coef:
        reference = model if config.lora else load_model(base, dtype=dtype).to(accelerator())
    if config.sharded:
        sharding.shard(model)
        if reference is not None:
            sharding.shard(reference)
    state = out / "resume" / f"{digest([settings, seed, weights_checksum(base)])}.pt"
    engine = make_engine(
        config.engine,
        base,
        model,
        width=max(map(len, prompts), default=0) + config.max_tokens,
        batch_size=config.rollout_batch_size,
        gpu_memory=config.engine_memory,
        sleep=True,
    )
    with make_grader(world.grader) as grader:
        task = Task(
            prompts=prompts,
            golds=[problem.answer for problem in problems],
            grade=grader.grade,
            tokenizer=tokenizer,
            eos_ids=stop_ids(model, dialogue),
            postfix_ids=tokenizer(POSTFIX, add_special_tokens=False).input_ids,
            reading=answer_reading(config, tokenizer),
            prefill=dialogue.prefill,
        )
        trainer = Trainer(credit, train_settings(config, seed), task, model, engine, reference)
        rows = trainer.run(state, broken=out / "broken")
    with sharding.whole(model) as trained:
        if parallel.is_main():
            save_model(trained, tokenizer, out / "model", notes=settings)
    if not parallel.is_main():
        return
    with whole_file(out / "train.jsonl") as partial:
        partial.write_text("".join(to_json(row) + "\n" for row in rows))
    write_provenance(
        out / "provenance.json",
        config=settings,
        inputs=[data / "train.jsonl"],
        seeds={"train": seed, "data": tier.seed},
        extra={"processes": parallel.size()},
    )
    shutil.rmtree(out / "resume", ignore_errors=True)


def train_settings(config: TrainConfig, seed: int) -> TrainSettings:
    """The trainer's settings from a resolved `train` section."""
    return TrainSettings(
        completions=config.completions,
        prompts_per_step=config.prompts_per_step,
        group_size=config.group_size,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        max_draws=config.max_draws,
        checkpoint_every=config.checkpoint_every,
        update=UpdateSettings(
            lr=config.lr,
            updates_per_rollout=config.updates_per_rollout,
            micro_batch_tokens=config.micro_batch_tokens,
            clip_norm=config.clip_norm,
            importance_cap=config.importance_cap,
        ),
        seed=seed,
    )


def answer_reading(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> AnswerReading:
    """Which prefixes' answer entropies are read. The last token of `</think>` is left out of what is searched for: a
    byte-level tokenizer may merge it with what follows."""
    ids = tokenizer(THINK_CLOSE, add_special_tokens=False).input_ids if config.skip_answer else []
    return AnswerReading(stride=config.answer_stride, stop_ids=tuple(ids[:-1] or ids))
