"""One training run, from files to files.

A stopped run resumes from its last checkpoint, and only from its own: the run's identity is stored beside the
checkpoint, and a checkpoint of any other run is set aside.
"""

from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import click
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iapo_bench.config.section import digest
from iapo_bench.config.train import TrainConfig, TrainJob
from iapo_bench.machine import parallel
from iapo_bench.machine.code import source_if_unknown
from iapo_bench.machine.provenance import checksum, checksums, write_provenance
from iapo_bench.machine.resume import resuming, run_identity
from iapo_bench.method import Method, Signal, load_method
from iapo_bench.models import sharding
from iapo_bench.models.checkpoints import (
    accelerator,
    load_model,
    load_tokenizer,
    save_model,
    stop_ids,
    torch_dtype,
)
from iapo_bench.models.lora import add_lora
from iapo_bench.rollout.load import make_engine
from iapo_bench.rollout.prompts import encode
from iapo_bench.signals.informativeness import AnswerReading
from iapo_bench.train.log import require_log
from iapo_bench.train.rewards import Rewards
from iapo_bench.train.task import Task, Validation
from iapo_bench.train.trackers import require_trackers, tracking
from iapo_bench.train.trainer import Trainer
from iapo_bench.worlds import POSTFIX, THINK_CLOSE
from iapo_bench.worlds.exact import is_formatted_on_one_line, judge_exactly
from iapo_bench.worlds.grading import is_formatted, make_grader, read_gradable
from iapo_bench.worlds.load import load_world, source_files


def train(job: TrainJob, *, base: Path, data: Path, out: Path) -> None:
    """Train one method from `base` and write `out/model`, `out/train.jsonl` (a row as soon as its step is done) and
    `out/provenance.json`.

    `data`: the directory that `prepare` wrote. `out/resume` holds the checkpoint until every rank and the engine have
    ended. Raises UserError for bad input and for a run that fails: see `Trainer.run`.
    """
    require_trackers(job.train.report_to)
    require_log(out / "train.jsonl")
    with ExitStack() as last, parallel.processes():
        _train(job, base, data, out, last)


def _train(job: TrainJob, base: Path, data: Path, out: Path, last: ExitStack) -> None:
    """`train` on one rank; `last` is closed when all ranks have ended."""
    config = job.train
    world = load_world(job.world, job.world_seed)
    method = load_method(job.method.name, job.method.profile, **job.method.options)
    if parallel.is_main() and (idle := method.loss.idle_choices(config.updates_per_rollout)):
        click.echo(
            f"warning: {job.method.name}: {', '.join(idle)} of the loss change nothing with "
            "train.updates_per_rollout = 1, where the policy is the one that sampled: set it to 2 or more",
            err=True,
        )
    problems = read_gradable(data / "train.jsonl", world.grader)[: config.problems]
    model, reference = _load_models(job, method, base)
    tokenizer = load_tokenizer(base)
    dialogue = world.dialogue(tokenizer, job.prompt)
    postfix_ids = tokenizer(POSTFIX, add_special_tokens=False).input_ids
    read = len(postfix_ids) if Signal.ANSWER_ENTROPY in method.needs else 0
    prompts = encode(problems, dialogue, base, config.max_tokens, postfix=read)
    watched = config.validate_problems if config.validate_every else 0
    looked = read_gradable(data / "validation.jsonl", world.grader)[:watched] if watched else []
    looked_prompts = encode(looked, dialogue, base, config.max_tokens)
    files = {name: told for name, told in checksums(base).items() if name != "provenance.json"}
    inputs = {"base": files, "problems": checksum(data / "train.jsonl")}
    plugins = [*job.plugins, *source_files(job.world)[:1]]
    run = run_identity(job, "iapo_bench.train.run", plugins, inputs=inputs)
    resume = last.enter_context(resuming(out / "resume", run, main=parallel.is_main()))
    parallel.gather([])  # no rank reads the folder before it belongs to this run
    engine = make_engine(
        config.engine,
        base,
        model,
        width=max(map(len, prompts + looked_prompts), default=0) + config.max_tokens,
        batch_size=config.rollout_batch_size,
        gpu_memory=config.engine_memory,
        sleep=True,
        deterministic=config.engine_deterministic,
    )
    with closing(engine), make_grader(world.grader) as grader:
        task = Task(
            prompts=prompts,
            golds=[problem.answer for problem in problems],
            grade=judge_exactly if config.grader == "exact" else grader.grade,
            formatted=is_formatted_on_one_line if config.format_rule == "one_line" else is_formatted,
            tokenizer=tokenizer,
            eos_ids=stop_ids(model, dialogue),
            postfix_ids=postfix_ids,
            reading=answer_reading(config, tokenizer),
            prefill=dialogue.prefill,
            rewards=Rewards(problems, config.rewards),
            validation=Validation(looked_prompts, [problem.answer for problem in looked], grader.grade),
        )
        trainer = Trainer(method, config, job.seed, task, model, engine, reference)
        trainer.run(
            resume / "state",
            broken=out / "broken",
            log=out / "train.jsonl",
            rollouts=out / "rollouts",
            tracking=partial(
                tracking, config.report_to, folder=out, run=f"{job.method.name}-seed{job.seed}-{digest(run)}", job=job
            ),
        )
    with sharding.whole(model) as trained:
        if parallel.is_main():
            save_model(trained, tokenizer, out / "model", notes=job.model_dump(mode="json"))
    if not parallel.is_main():
        return
    write_provenance(
        out / "provenance.json",
        config=job.model_dump(mode="json"),
        inputs=[data / "train.jsonl"],
        seeds={"train": job.seed, "data": job.world_seed},
        extra={
            "run": run,
            "processes": parallel.size(),
            "sources": {
                f"{path.parent.name}/{path.name}": text
                for path in plugins
                if (text := source_if_unknown(path)) is not None
            },
        },
    )


def _load_models(job: TrainJob, method: Method, base: Path) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The model to train, and the reference model for a KL term: with LoRA the model itself."""
    config, dtype = job.train, torch_dtype(job.dtype)
    model = load_model(base, dtype=dtype).to(accelerator())
    if config.lora:
        add_lora(model, config.lora, job.seed)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    reference = None
    if method.loss.kl_coef:
        reference = model if config.lora else load_model(base, dtype=dtype).to(accelerator())
    if config.sharded:
        sharding.shard(model)
        if reference is not None:
            sharding.shard(reference)
    return model, reference


def answer_reading(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> AnswerReading:
    """Which prefixes' answer entropies are read. The search for `</think>` leaves out its last token, which a
    byte-level tokenizer may merge with the text that follows."""
    ids = tokenizer(THINK_CLOSE, add_special_tokens=False).input_ids if config.skip_answer else []
    return AnswerReading(stride=config.answer_stride, stop_ids=tuple(ids[:-1] or ids))
