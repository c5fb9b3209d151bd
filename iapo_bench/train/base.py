"""The model that every method starts from: taught here, fetched, or fetched and fine-tuned."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from iapo_bench.config import TierConfig
from iapo_bench.errors import UserError, unknown
from iapo_bench.machine.provenance import write_provenance
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
from iapo_bench.train.sft import Schooling, WarmStart, encode_lessons, mean_loss, teach, warm_start
from iapo_bench.worlds import SPLITS
from iapo_bench.worlds.datasets.micro import MicroWorld, build_tokenizer
from iapo_bench.worlds.load import load_held_out, load_world
from iapo_bench.worlds.overlap import separate
from iapo_bench.worlds.text import TextWorld

# Validation problems on which schooling is watched.
HELD_OUT_PROBLEMS = 32

Settings = TypeVar("Settings", bound=Schooling)


def make_base(tier: TierConfig, out: Path) -> None:
    """Write the model that every method starts from to `out`: taught here (micro), or fetched, and then schooled on the
    training split's worked solutions if the tier has a `model.warm_start`."""
    if tier.model.source == "warm-start":
        _teach_micro(tier, out)
    elif tier.model.warm_start:
        _school_fetched(tier, out)
    else:
        world = load_world(tier.world, tier.seed)
        revision = fetch_model(
            tier.model.source, out, check=lambda tokenizer: world.dialogue(tokenizer, tier.prompt).check()
        )
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
        checksums = weights_checksum(fetched)
        model = load_model(fetched, dtype=torch_dtype(tier.model.dtype)).to(accelerator())
        tokenizer = load_tokenizer(fetched)
        dialogue = world.dialogue(tokenizer, tier.prompt)
        dialogue.check()
        lessons = encode_lessons(dialogue, taught + held_out, traces, context=context_length(fetched))
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


def _warm_start_settings(tier: TierConfig, kind: type[Settings]) -> Settings:
    options: dict[str, Any] = {"seed": tier.seed, **tier.model.warm_start}
    known = {field.name for field in dataclasses.fields(kind)}
    for option in options:
        if option not in known:
            raise unknown("option of model.warm_start", option, known)
    return kind(**options)
