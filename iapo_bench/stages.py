"""What each command and each workflow rule does, from files to files.

Every stage checks its input first and writes its output whole or not at all.
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from iapo_bench import parallel, sharding
from iapo_bench.config import TierConfig, TrainConfig, digest
from iapo_bench.errors import UserError, unknown
from iapo_bench.files import to_json, whole_directory, whole_file, write_json
from iapo_bench.grading import make_grader
from iapo_bench.informativeness import AnswerReading
from iapo_bench.lora import LoraSettings, add_lora
from iapo_bench.method import load_method
from iapo_bench.models import (
    accelerator,
    context_length,
    eos_ids,
    load_model,
    load_tokenizer,
    save_model,
    torch_dtype,
)
from iapo_bench.pretrained import fetch_model
from iapo_bench.provenance import checksum, hardware, write_provenance
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.load import make_engine
from iapo_bench.seeds import stream_seed
from iapo_bench.trainer import Task, Trainer, TrainSettings
from iapo_bench.update import UpdateSettings
from iapo_bench.warm_start import Schooling, WarmStart, encode_lessons, mean_loss, teach, warm_start
from iapo_bench.worlds import POSTFIX, SPLITS, THINK_CLOSE, Problem, read_problems, write_problems
from iapo_bench.worlds.load import load_held_out, load_world
from iapo_bench.worlds.micro import MicroWorld, build_tokenizer
from iapo_bench.worlds.overlap import separate
from iapo_bench.worlds.text import TextWorld

# Validation problems on which schooling is watched.
HELD_OUT_PROBLEMS = 32

Settings = TypeVar("Settings", bound=Schooling)


def prepare(tier: TierConfig, out: Path) -> None:
    """Write the problems of every split to `out/<split>.jsonl`, their golds checked.

    Training problems that validation, test or a held-out benchmark has too are left out (of the published splits they
    are only counted); provenance says how many.
    """
    world = load_world(tier.world, tier.seed)
    honest = tier.world.splits == "honest"
    splits, overlap, repeats = separate(
        {split: world.load(split) for split in SPLITS}, load_held_out(tier.world), remove=honest
    )
    if repeats:
        fate = "removed from training" if honest else "left in training, as published"
        click.echo(
            f"warning: {repeats} training problems are also validation, test or held-out problems: {fate}", err=True
        )
    with whole_directory(out) as partial:
        for split, problems in splits.items():
            write_problems(partial / f"{split}.jsonl", problems)
        write_provenance(
            partial / "provenance.json",
            config=tier.world.model_dump(),
            inputs=sorted(Path(tier.world.data_dir).glob("*.jsonl")) if tier.world.data_dir else [],
            seeds={"seed": tier.seed},
            extra={
                "problems": {split: len(problems) for split, problems in splits.items()},
                "overlap": overlap,
                "removed_from_train": repeats if honest else 0,
            },
        )


def make_base(tier: TierConfig, out: Path) -> None:
    """Write the model that every method starts from to `out`: taught here (micro), or fetched, and then schooled on the
    training split's worked solutions if the tier has a `model.warm_start`."""
    if tier.model.source == "warm-start":
        _teach_micro(tier, out)
    elif tier.model.warm_start:
        _school_fetched(tier, out)
    else:
        revision = fetch_model(tier.model.source, out)
        write_provenance(
            out / "provenance.json",
            config=tier.model.model_dump(),
            inputs=sorted(out.glob("*.safetensors")),
            seeds={},
            extra={"revision": revision},
        )


def _teach_micro(tier: TierConfig, out: Path) -> None:
    world = load_world(tier.world, tier.seed)
    if not isinstance(world, MicroWorld):
        raise UserError("model.source 'warm-start' is for the micro world: name a hub id, a wheel or a directory")
    tokenizer = build_tokenizer()
    model, log = warm_start(world, tokenizer, _warm_start_settings(tier, WarmStart))
    save_model(model, tokenizer, out, notes={"warm_start": tier.model.warm_start, "loss": log})


def _school_fetched(tier: TierConfig, out: Path) -> None:
    """Teach a fetched model the training problems that `prepare` would write, and no other.

    Problems that validation, test or a held-out benchmark has too are left out even of the published splits. The loss
    on some validation problems is measured before and after; the published splits have none that are not test problems.
    """
    world = load_world(tier.world, tier.seed)
    if not isinstance(world, TextWorld):
        raise UserError("model.warm_start has no solutions for a fetched model in the micro world: set it to null")
    if out.exists():
        raise UserError(f"{out} exists: remove it to make the model again")
    settings = _warm_start_settings(tier, Schooling)
    splits, _, _ = separate({split: world.load(split) for split in SPLITS}, load_held_out(tier.world))
    taught = splits["train"]
    held_out = splits["validation"][:HELD_OUT_PROBLEMS] if tier.world.splits == "honest" else []
    traces = world.write_traces(taught + held_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        fetched = Path(folder) / "fetched"
        revision = fetch_model(tier.model.source, fetched)
        checksums = _weights_checksum(fetched)
        model = load_model(fetched, dtype=torch_dtype(tier.model.dtype)).to(accelerator())
        tokenizer = load_tokenizer(fetched)
        lessons = encode_lessons(world, taught + held_out, traces, tokenizer, context=context_length(fetched))
    lessons, measured = lessons[: len(taught)], lessons[len(taught) :]

    def measure() -> float | None:
        memory = {"pad_id": tokenizer.pad_token_id, "micro_batch_tokens": settings.micro_batch_tokens}
        return round(mean_loss(model, measured, **memory), 5) if measured else None

    before = measure()
    log = teach(model, lessons, settings, pad_id=tokenizer.pad_token_id)
    held_out_loss = {"problems": len(measured), "before": before, "after": measure()}
    notes = {"warm_start": dataclasses.asdict(settings), "loss": log, "held_out_loss": held_out_loss}
    save_model(model, tokenizer, out, notes=notes)
    write_provenance(
        out / "provenance.json",
        config={"model": tier.model.model_dump(), "world": tier.world.model_dump()},
        inputs=sorted(Path(tier.world.data_dir).glob("*.jsonl")) if tier.world.data_dir else [],
        seeds={"warm_start": settings.seed},
        extra={
            "revision": revision,
            "fetched_weights": checksums,
            "problems": {"taught": len(lessons), "held_out": len(measured)},
        },
    )


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
    problems = read_problems(data / "train.jsonl")[: config.problems]
    dtype = torch_dtype(tier.model.dtype)
    model = load_model(base, dtype=dtype).to(accelerator())
    if config.lora:
        add_lora(model, LoraSettings(**config.lora.model_dump()), seed)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokenizer = load_tokenizer(base)
    prompts = encode(problems, world, tokenizer, base, config.max_tokens)
    reference = None
    if credit.loss.kl_coef:
        reference = model if config.lora else load_model(base, dtype=dtype).to(accelerator())
    if config.sharded:
        sharding.shard(model)
        if reference is not None:
            sharding.shard(reference)
    state = out / "resume" / f"{digest([settings, seed, _weights_checksum(base)])}.pt"
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
            eos_ids=eos_ids(model, tokenizer),
            postfix_ids=tokenizer(POSTFIX, add_special_tokens=False).input_ids,
            reading=answer_reading(config, tokenizer),
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


def sample(
    tier: TierConfig, *, model: Path, data: Path, split: str, out: Path, seeds: Sequence[int], n_samples: int
) -> None:
    """Sample every problem of a split, all seeds with one model load: `out/samples.parquet` and `out/timing.json`."""
    config = tier.evaluate
    problems = read_problems(_split_file(data, split))[: config.problems]
    world = load_world(tier.world, tier.seed)
    # Of vllm the model is only a check: it must not take the accelerator's memory.
    device = accelerator() if config.engine == "transformers" else torch.device("cpu")
    network = load_model(model, dtype=torch_dtype(tier.model.dtype)).to(device)
    tokenizer = load_tokenizer(model)
    prompts = encode(problems, world, tokenizer, model, config.max_tokens)
    engine = make_engine(
        config.engine,
        model,
        network,
        width=max(map(len, prompts), default=0) + config.max_tokens,
        batch_size=config.batch_size,
        gpu_memory=config.engine_memory,
        progress=True,
    )

    def sampling(seed: int, n: int, max_tokens: int) -> Sampling:
        return Sampling(
            max_tokens=max_tokens,
            eos_ids=eos_ids(network, tokenizer),
            samples_per_prompt=n,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=stream_seed(seed, "evaluation"),
        )

    started = time.perf_counter()
    engine.generate(prompts[:8], sampling(0, 1, min(8, config.max_tokens)))
    warm = time.perf_counter()
    frames = []
    for seed in seeds:
        completions = engine.generate(prompts, sampling(seed, n_samples, config.max_tokens))
        frames.append(
            pd.DataFrame(
                {
                    "problem_id": [problem.id for problem in problems for _ in range(n_samples)],
                    "sample": list(range(n_samples)) * len(problems),
                    "seed": seed,
                    "token_ids": [list(completion.token_ids) for completion in completions],
                    "n_tokens": [len(completion.token_ids) for completion in completions],
                    "finish_reason": [completion.finish_reason for completion in completions],
                }
            )
        )
    seconds = time.perf_counter() - warm
    samples = pd.concat(frames, ignore_index=True)
    samples["text"] = tokenizer.batch_decode(samples["token_ids"].tolist(), skip_special_tokens=True)
    timing = {
        "engine": config.engine,
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "batch_size": config.batch_size,
        "warmup_seconds": round(warm - started, 3),
        "seconds": round(seconds, 3),
        "completions": len(samples),
        "tokens": int(samples["n_tokens"].sum()),
    }
    with whole_file(out / "samples.parquet") as partial:
        samples.to_parquet(partial, index=False)
    write_json(out / "timing.json", timing)


def grade(tier: TierConfig, *, samples: Path, data: Path, split: str, out: Path) -> None:
    """Judge every sample: one row each with its outcome, to the parquet file `out`."""
    golds = {problem.id: problem.answer for problem in read_problems(_split_file(data, split))}
    if not samples.is_file():
        raise UserError(f"{samples} does not exist: sample first")
    frame = pd.read_parquet(samples)
    if missing := set(frame["problem_id"]) - set(golds):
        raise UserError(f"{samples}: problem '{min(missing)}' is not in {data}: sample again after preparing data")
    with make_grader(load_world(tier.world, tier.seed).grader) as grader:
        outcomes = grader.grade(frame["text"].tolist(), [golds[i] for i in frame["problem_id"]], progress=True)
    frame["outcome"] = [outcome.value for outcome in outcomes]
    with whole_file(out) as partial:
        frame.drop(columns=["token_ids"]).to_parquet(partial, index=False)


def encode(problems: list[Problem], world: Any, tokenizer: Any, model: Path, max_tokens: int) -> list[list[int]]:
    """Prompt token ids. Raises UserError for a prompt that does not fit the model's context with its completion."""
    prompts = [world.encode_prompt(problem, tokenizer) for problem in problems]
    room = context_length(model) - max_tokens
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) > room:
            raise UserError(
                f"problem '{problem.id}' has {len(prompt)} prompt tokens; the model's context leaves {max(room, 0)} "
                f"beside max_tokens={max_tokens}: lower max_tokens or drop the problem"
            )
    return prompts


def _warm_start_settings(tier: TierConfig, kind: type[Settings]) -> Settings:
    options: dict[str, Any] = {"seed": tier.seed, **tier.model.warm_start}
    known = {field.name for field in dataclasses.fields(kind)}
    for option in options:
        if option not in known:
            raise unknown("option of model.warm_start", option, known)
    return kind(**options)


def _split_file(data: Path, split: str) -> Path:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return data / f"{split}.jsonl"


def _weights_checksum(model: Path) -> str:
    """Of the weights: a run must not be resumed from another base."""
    return " ".join(checksum(file) for file in sorted(model.glob("*.safetensors")))
