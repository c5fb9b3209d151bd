"""The base model that every method starts from: shipped, trained here, fetched, or fetched and fine-tuned."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from iapo_bench.config.model import SHIPPED, BaseJob, CheckpointJob
from iapo_bench.config.section import identity
from iapo_bench.errors import UserError, unknown
from iapo_bench.machine.provenance import checksum, write_provenance
from iapo_bench.models.checkpoints import (
    accelerator,
    context_length,
    load_model,
    load_tokenizer,
    save_model,
    torch_dtype,
    weights_checksum,
)
from iapo_bench.models.sources import fetch_model
from iapo_bench.train.sft import SFT, TaughtSFT, encode_examples, fine_tune, mean_loss, teach_micro
from iapo_bench.worlds import SPLITS, World
from iapo_bench.worlds.datasets.micro import MicroWorld, build_tokenizer
from iapo_bench.worlds.load import load_held_out, load_published, load_world, local_files
from iapo_bench.worlds.overlap import separate
from iapo_bench.worlds.text import ChatWorld

# Validation problems for the held-out loss of SFT.
HELD_OUT_PROBLEMS = 32

Settings = TypeVar("Settings", bound=SFT)


def make_base(job: BaseJob, out: Path) -> None:
    """Write the base model to `out`: shipped or trained here (micro), or fetched and, with `model.sft`, fine-tuned on
    the training split's worked solutions. Raises UserError for a source, a world and SFT settings that do not fit
    together."""
    if job.model.source == "shipped":
        _copy_shipped(job, out)
    elif job.model.source == "taught":
        _teach_micro(job, out)
    elif job.model.sft:
        _tune_fetched(job, out)
    else:
        _fetch(job, job.model.source, load_world(job.world, job.seed), out)


def fetch_checkpoint(job: CheckpointJob, out: Path) -> None:
    """Fetch a model that is measured but not trained to `out`. Raises UserError if it cannot be fetched."""
    _fetch(job, job.source, load_world(job.world, job.world_seed), out, subfolder=job.subfolder)


def _fetch(job: BaseJob | CheckpointJob, source: str, world: World, out: Path, *, subfolder: str | None = None) -> None:
    revision = fetch_model(
        source, out, check=lambda tokenizer: world.dialogue(tokenizer, job.prompt).check(), subfolder=subfolder
    )
    write_provenance(
        out / "provenance.json",
        config=identity(job),
        inputs=sorted(out.glob("*.safetensors")),
        seeds={},
        extra={"revision": revision},
    )


def _copy_shipped(job: BaseJob, out: Path) -> None:
    """Raises UserError for a world other than micro, for SFT settings, and for files that differ from the release."""
    if job.world.name != "micro" or job.model.sft:
        raise UserError("model.source 'shipped' is the micro world's finished base: use 'taught' to train another")
    for line in (SHIPPED / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        if checksum(SHIPPED / name) != expected:
            raise UserError(f"{SHIPPED / name} differs from the released file: install the package again")
    _fetch(job, str(SHIPPED), load_world(job.world, job.seed), out)


def _teach_micro(job: BaseJob, out: Path) -> None:
    world = load_world(job.world, job.seed)
    if not isinstance(world, MicroWorld):
        raise UserError("model.source 'taught' is for the micro world: name a hub id, a wheel or a directory")
    tokenizer = build_tokenizer()
    settings = _sft_settings(job, TaughtSFT)
    model, log = teach_micro(world, tokenizer, settings)
    save_model(model, tokenizer, out, notes={"sft": dataclasses.asdict(settings), "loss": log})
    write_provenance(
        out / "provenance.json",
        config=identity(job),
        inputs=[],
        seeds={"sft": settings.seed},
        extra={"weights": weights_checksum(out)},
    )


def _tune_fetched(job: BaseJob, out: Path) -> None:
    """Fine-tune a fetched model on the training split, less what validation, test or a held-out benchmark also holds.

    This includes the published splits, where `prepare` only counts such problems. The loss on some validation problems
    is measured before and after, except with the published splits, whose validation split is the test split.
    """
    world = load_published(job.world, job.seed)
    if not isinstance(world, ChatWorld):
        raise UserError("model.sft cannot fine-tune a fetched model in the micro world: set model.sft to null")
    if out.exists():
        raise UserError(f"{out} exists: remove it to make the model again")
    settings = _sft_settings(job, SFT)
    splits, _, _ = separate({split: world.load(split) for split in SPLITS}, load_held_out(job.world))
    taught = splits["train"]
    held_out = splits["validation"][:HELD_OUT_PROBLEMS] if job.world.splits == "honest" else []
    traces = world.write_traces(taught + held_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        fetched = Path(folder) / "fetched"
        revision = fetch_model(job.model.source, fetched)
        checksums = weights_checksum(fetched)
        model = load_model(fetched, dtype=torch_dtype(job.model.dtype)).to(accelerator())
        tokenizer = load_tokenizer(fetched)
        dialogue = world.dialogue(tokenizer, job.prompt)
        dialogue.check()
        examples = encode_examples(dialogue, taught + held_out, traces, context=context_length(fetched))
    examples, measured = examples[: len(taught)], examples[len(taught) :]

    def measure() -> float | None:
        memory = {"pad_id": tokenizer.pad_token_id, "micro_batch_tokens": settings.micro_batch_tokens}
        return round(mean_loss(model, measured, **memory), 5) if measured else None

    before = measure()
    log = fine_tune(model, examples, settings, pad_id=tokenizer.pad_token_id)
    held_out_loss = {"problems": len(measured), "before": before, "after": measure()}
    notes = {"sft": dataclasses.asdict(settings), "loss": log, "held_out_loss": held_out_loss}
    save_model(model, tokenizer, out, notes=notes)
    write_provenance(
        out / "provenance.json",
        config=identity(job),
        inputs=local_files(job.world),
        seeds={"sft": settings.seed},
        extra={
            "revision": revision,
            "fetched_weights": checksums,
            "problems": {"taught": len(examples), "held_out": len(measured)},
        },
    )


def _sft_settings(job: BaseJob, kind: type[Settings]) -> Settings:
    options: dict[str, Any] = {"seed": job.seed, **job.model.sft}
    known = {field.name for field in dataclasses.fields(kind)}
    for option in options:
        if option not in known:
            raise unknown("option of model.sft", option, known)
    return kind(**options)
