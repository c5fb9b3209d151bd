"""Cost of a tier as tables: jobs, GPU-hours, memory by strategy, disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate
from transformers import AutoConfig

from iapo_bench.config.job import Kind, Request
from iapo_bench.config.tier import TierConfig
from iapo_bench.errors import UserError, unknown
from iapo_bench.models.architectures import ARCHITECTURES, Architecture
from iapo_bench.plan import costs
from iapo_bench.plan.calibration import Rates, compare, fit, read_runs
from iapo_bench.train.sft import TaughtSFT
from iapo_bench.worlds.datasets.micro import VOCABULARY, MicroWorld
from iapo_bench.worlds.load import load_world

TRAINING = (*(f"{phase} h" for phase in costs.PHASES), "training h")  # columns of `time_table`
TEST_PROBLEMS = {
    "honest": {"gsm8k": 1319, "math500": 196, "dapo": 518},
    "published": {"gsm8k": 1319, "math500": 100, "dapo": 50},
}


def plan(
    tiers: list[TierConfig],
    *,
    device: str,
    gpus: int,
    length: float | None = None,
    calibrate: Path | None = None,
) -> str:
    """The plan of a tier, one TierConfig for each of its datasets, as text.

    `length` replaces the assumed mean completion length, in tokens. With runs of the tier in `calibrate`, or else in
    its folder of `results`, seconds come from the rates that they achieved. Raises UserError for a model whose sizes
    are not known, and for a `calibrate` without runs.
    """
    if device not in costs.DEVICES:
        raise unknown("device", device, costs.DEVICES)
    size = architecture(tiers[0])
    parts = [_headline(tiers[0], size, device)]
    total = 0.0
    for tier in tiers:
        lengths = costs.lengths_of(tier.world.name)
        if length is not None:
            lengths = replace(lengths, completion=length)
        problems = test_problems(tier)
        rates, check = _calibration(tier, size, lengths, problems, calibrate)
        rows = time_table(tier, size, lengths, problems, device, rates)
        total += rows[-1][_hours(device)]
        columns = list(dict.fromkeys(column for row in reversed(rows[:-1]) for column in row))
        space = costs.disk(size, tier, problems, lengths)
        parts += [
            f"\n## {tier.world.name}: completions of {lengths.completion:g} tokens, {problems} test problems, "
            f"{sum(jobs(tier).values())} jobs\n",
            ", ".join(f"{count} {rule}" for rule, count in jobs(tier).items()) + "\n",
            tabulate(
                [{column: row.get(column) for column in columns} for row in rows],
                headers="keys",
                tablefmt="github",
                floatfmt=".4g",
            ),
            "\nDisk, GiB: " + ", ".join(f"{what} {gib:.3g}" for what, gib in space.items()),
            "\nOne job at its longest, with the engine's start:\n",
            tabulate(limits(tier, size, rows), headers="keys", tablefmt="github", floatfmt=".3g"),
        ]
        if check:
            parts += ["\nPredicted without the run itself, against measured:\n", tabulate(check, headers="keys")]
        else:
            parts.append(
                "\nSeconds at assumed utilisation (iapo_bench/plan/costs.py), not measured: a factor of 3; no lm-eval."
            )
    if tiers[0].trained:
        parts += _memory(size, tiers[0], device, gpus)
    count = sum(sum(jobs(tier).values()) for tier in tiers)
    return "\n".join([*parts, f"\nTotal: {count} jobs, {total:.4g} {_hours(device)} on {device}."])


def _memory(size: Architecture, tier: TierConfig, device: str, gpus: int) -> list[str]:
    memory = costs.memory(size, tier, costs.lengths_of(tier.world.name), costs.DEVICES[device], gpus)
    room = costs.DEVICES[device].memory / costs.GIB
    for row in memory:
        row["fits"] = "yes" if float(row["peak GiB"]) < room else "no"
        row["this tier"] = "yes" if str(row["strategy"]).startswith(costs.strategy(tier)) else ""
    return [
        f"\n## Memory of a training job, GiB a GPU ({device} has {room:.3g})\n",
        tabulate(memory, headers="keys", tablefmt="github", floatfmt=".3g"),
        _host(size, tier),
    ]


def limits(tier: TierConfig, size: Architecture, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Minutes of the longest job of each kind, beside the tier's request to a cluster; `rows`: those of `time_table`.

    A stopped job continues, so its limit may be shorter than the run.
    """
    runs = {
        row["method"]: (3600 * sum(row.get(column, 0.0) for column in TRAINING), row.get("steps", 0)) for row in rows
    }
    tuning, _ = runs.pop("base")
    training, steps = max(runs.values())
    start = {name: costs.VLLM_START_SECONDS * (name == "vllm") for name in ("vllm", "transformers")}
    kinds: dict[Kind, tuple[float, str]] = {"base": (tuning, "")} if tuning else {}
    if tier.trained:
        made = costs.checkpoints(tier, steps, training)
        note = f"{made} checkpoints of {costs.checkpoint(size, tier):.3g} GiB"
        kinds["train"] = (training + start[tier.train.engine], note)
    kinds["sample"] = (3600 * rows[0]["sampling h"] + start[tier.evaluate.engine], "")
    return [_limit(kind, seconds / 60, tier.request(kind), note) for kind, (seconds, note) in kinds.items()]


def _limit(kind: Kind, minutes: float, request: Request, note: str) -> dict[str, Any]:
    asked = {"asked: minutes": request.runtime, "GPUs": request.gpus, "CPUs": request.cpus, "MB": request.mem_mb}
    short = ["longer than asked"] if minutes > request.runtime else []
    return {"job": kind, "minutes": minutes, **asked, "": ", ".join([*filter(None, [note]), *short])}


def _host(size: Architecture, tier: TierConfig) -> str:
    """Main memory of a training job, and whether the tier requests enough."""
    parts = costs.host_memory(size, tier)
    needed, asked = sum(parts.values()), tier.request("train").mem_mb * 1e6 / costs.GIB
    enough = "" if needed <= asked else ": too little, raise job.train.mem_mb"
    return (
        f"\nMain memory of a training job, GiB: {', '.join(f'{what} {gib:.3g}' for what, gib in parts.items())}; "
        f"together {needed:.3g}, asked for {asked:.3g}{enough}."
    )


def overview(tiers: list[TierConfig]) -> str:
    """All tiers in one table, a row for each of their datasets, on the device that each is made for."""
    table = []
    for tier in tiers:
        size, device = architecture(tier), default_device(tier)
        lengths, problems = costs.lengths_of(tier.world.name), test_problems(tier)
        rows = time_table(tier, size, lengths, problems, device, None)
        longest = max(limits(tier, size, rows), key=lambda row: row["minutes"])
        table.append(
            {
                **{"tier": tier.tier, "dataset": tier.world.name, "device": device, "GPUs a job": tier.gpus},
                "jobs": sum(jobs(tier).values()),
                "hours": rows[-1][_hours(device)],
                "longest job, h": longest["minutes"] / 60,
                "disk, GiB": sum(costs.disk(size, tier, problems, lengths).values()),
                "checkpoint, GiB": costs.checkpoint(size, tier) if tier.trained else None,
                "main memory, GiB": sum(costs.host_memory(size, tier).values()) if tier.trained else None,
            }
        )
    note = "Hours of GPUs, or of CPUs where the device is one, at assumed utilisation: a factor of 3."
    return f"{tabulate(table, headers='keys', tablefmt='github', floatfmt='.3g')}\n\n{note}"


def default_device(tier: TierConfig) -> str:
    """The device that a tier is made for: a CPU where it asks for no GPU."""
    return "h100" if tier.gpus else "cpu"


def architecture(tier: TierConfig) -> Architecture:
    """The sizes of a tier's model: from its settings, from the table of known ones, or from its config.json.

    Raises UserError when none of them has the sizes.
    """
    source = str(tier.model.directory or tier.model.source)
    if source == "taught":
        known = {"hidden": TaughtSFT.hidden, "layers": TaughtSFT.layers, "heads": TaughtSFT.heads}
        chosen = {name: int(tier.model.sft.get(name, default)) for name, default in known.items()}
        kv, hidden = max(1, chosen["heads"] // 2), chosen["hidden"]
        return Architecture(
            **chosen, kv_heads=kv, intermediate=3 * hidden, vocabulary=len(VOCABULARY), tied=True, qkv_bias=False
        )
    for name, size in ARCHITECTURES.items():
        if name in source.lower() or name.split("-")[0] == source.lower().removeprefix("wheel:llm-").split("==")[0]:
            return size
    try:
        config: Any = AutoConfig.from_pretrained(source.partition("@")[0], local_files_only=Path(source).is_dir())
        return Architecture(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
            qkv_bias=config.model_type == "qwen2",
        )
    except Exception as error:  # of the hub, of a damaged file, or of an architecture without these sizes
        raise UserError(
            f"the sizes of {source} are not known and its config cannot be read: known are {', '.join(ARCHITECTURES)}"
        ) from error


def test_problems(tier: TierConfig) -> int:
    """Problems of the test split that are sampled."""
    if tier.world.name == "micro":
        count = int(tier.world.options.get("n_test", MicroWorld.n_test))
    else:
        known = TEST_PROBLEMS[tier.world.splits].get(tier.world.name)
        count = known or len(load_world(tier.world, tier.seed).load("test"))
    return min(count, tier.evaluate.problems or count)


def jobs(tier: TierConfig) -> dict[str, int]:
    """Jobs by rule, as a dry run of `snakemake` counts them, except the last, `all`."""
    runs = sum(len(tier.train_seeds(name)) for name in tier.methods)
    fetched = len(tier.methods) - len(tier.trained)
    also = len(tier.also)  # other datasets that the same models are measured on
    return {
        "prepare": 1,
        **({"prepare_also": also, "metrics_also": also * (1 + len(tier.methods))} if also else {}),
        "base": 1,
        **({"checkpoint": fetched} if fetched else {}),
        **({"train": runs - fetched, "curves": 1} if tier.trained else {}),
        "sample": (1 + also) * (1 + runs),
        "grade": (1 + also) * (1 + runs),
        "metrics": 1 + len(tier.methods),
        **({"controls": 1} if tier.evaluate.n_samples >= 4 else {}),
        **dict.fromkeys(("table", "page", "comparisons", "paired", "frontier", "costs", "wallclock"), 1),
        "lm_eval": 1 + runs,
        "lm_eval_table": 1,
        **({"token_roles": 1 + runs, "role_tables": 1, "calibration": 1} if tier.world.name == "micro" else {}),
    }


def time_table(
    tier: TierConfig, size: Architecture, lengths: costs.Lengths, problems: int, device: str, rates: Rates | None
) -> list[dict[str, Any]]:
    """Wall-clock hours of one training job and of sampling one model, the datasets of evaluate.also apart (`also h`),
    and device-hours of all over all seeds; one row per method, and the sum.

    The base's training is its SFT.
    """
    ranks = max(1, tier.gpus)
    engine, seeds = tier.train.engine, len(tier.train.seeds)
    machine, dtype = costs.DEVICES[device], tier.model.dtype

    def sampling_hours(problems: int, lengths: costs.Lengths) -> float:
        work, sampler = costs.sampling_work(tier, problems, lengths), tier.evaluate.engine
        spent = rates.sampling(size, work) if rates else costs.rollout_seconds(size, work, machine, dtype, sampler)
        return spent / 3600

    sampling = sampling_hours(problems, lengths)
    others = [tier.model_copy(update={"world": world}) for world in tier.also.values()]
    also = sum(sampling_hours(test_problems(other), costs.lengths_of(other.world.name)) for other in others)
    measuring = {"sampling h": sampling, **({"also h": also} if others else {})}
    base: dict[str, Any] = {"method": "base"}
    tuning = 0.0
    if examples := costs.sft_work(tier, lengths):
        spent = rates.sft(size, examples) if rates else costs.update_seconds(size, examples, machine, dtype)
        tuning = spent / 3600
        base |= {"steps": examples.completions // examples.step, ("training h" if rates else "update h"): tuning}
    rows = [base | measuring | {_hours(device): tuning + sampling + also}]
    for method in tier.methods:
        if method in tier.measured:
            rows.append({"method": method, **measuring, _hours(device): sampling + also})
            continue
        work = costs.training_work(tier, method, lengths)
        if rates:
            training = {"training h": rates.training(size, work) / 3600}
        else:
            parts = costs.seconds(size, costs.largest_share(work, ranks), machine, dtype, engine)
            training = {f"{phase} h": value / 3600 for phase, value in parts.items()}
        hours = seeds * (ranks * sum(training.values()) + sampling + also)
        rows.append(
            {
                "method": method,
                "steps": work.completions // work.step,
                **training,
                **measuring,
                _hours(device): hours,
            }
        )
    return [*rows, {"method": "all", _hours(device): sum(row[_hours(device)] for row in rows)}]


def _calibration(
    tier: TierConfig, size: Architecture, lengths: costs.Lengths, problems: int, calibrate: Path | None
) -> tuple[Rates | None, list[dict[str, Any]]]:
    work = calibrate or Path("results") / tier.folder
    if calibrate is None and not list(work.glob("*/seed*/train.jsonl")):
        return None, []
    runs = read_runs(work, tier)
    return fit(size, tier, runs, lengths), compare(size, tier, runs, lengths, problems)


def _hours(device: str) -> str:
    return "CPU-hours" if device == "cpu" else "GPU-hours"


def _headline(tier: TierConfig, size: Architecture, device: str) -> str:
    return (
        f"# {tier.tier}: {tier.model.name}, {size.parameters / 1e6:,.1f} M parameters, {tier.model.dtype}, "
        f"{len(tier.methods)} methods x {len(tier.train.seeds)} seeds, {device}"
    )
