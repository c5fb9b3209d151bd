"""Write the problems of every split, checked, without the training problems that another split has too."""

from pathlib import Path

import click

from iapo_bench.config import TierConfig
from iapo_bench.files import whole_directory
from iapo_bench.machine.provenance import write_provenance
from iapo_bench.worlds import SPLITS, write_problems
from iapo_bench.worlds.load import load_held_out, load_world
from iapo_bench.worlds.overlap import separate


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
