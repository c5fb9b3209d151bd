"""Work in units that are done whole or again, over calls of bounded time, in lanes that run beside each other.

State is files, so that a call can be killed at any moment: `KEY.json` of a unit that is done (seconds and result),
`KEY.failed`, `KEY.running`, and `KEY.cut` with seconds.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESTART = 3  # a worker's exit code after a failure: a CUDA error spoils its process


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
    """What became of units, in files of a folder."""

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
    """The units of a run in order, and which of the `chosen` can be started. `at_least`: the seconds that a unit of
    unknown length is given."""

    def __init__(self, units: Sequence[Unit], chosen: Sequence[Unit], state: State, *, at_least: float) -> None:
        self.units = units
        self.chosen = chosen
        self.state = state
        self.at_least = at_least
        self.by_key = {unit.key: unit for unit in units}

    def least(self, unit: Unit) -> float:
        """Seconds that must be left to start a unit: those of its like, or of its last try."""
        if unit.resumes:
            return self.at_least
        alike = [self.state.read(other) for other in self.units if other.stage == unit.stage]
        cut = self.state.path(unit, "cut")
        return max(
            self.at_least,
            *(1.1 * done["seconds"] for done in alike if done),
            1.1 * float(cut.read_text()) if cut.is_file() else 0.0,
        )

    def hopeless(self, unit: Unit) -> bool:
        """Whether it failed, or what it cannot do without: of what it needs loosely, all."""
        lost = [self.hopeless(self.by_key[key]) for key in unit.needs]
        return self.state.failed(unit) or (bool(lost) and (all(lost) if unit.loosely else any(lost)))

    def ready(self, unit: Unit, remaining: float) -> bool:
        settled = all(self.state.done(key) or (unit.loosely and self.hopeless(self.by_key[key])) for key in unit.needs)
        return settled and not self.hopeless(unit) and not self.state.done(unit) and remaining > self.least(unit)

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


def work_through(plan: Plan, lane: str, deadline: float) -> int:
    """Do the units of a lane as long as there is time; return the exit code."""
    mine = [unit for unit in plan.chosen if unit.lane == lane]
    while True:
        remaining = deadline - time.time()
        ready = next((unit for unit in mine if plan.ready(unit, remaining)), None)
        if ready is not None:
            if not do(ready, plan.state):
                return RESTART
        elif any(not plan.closed(unit) and plan.possible(unit, remaining) for unit in mine):
            time.sleep(0.2)  # for the other lane
        else:
            return 0


def do(unit: Unit, state: State) -> bool:
    """Do one unit and keep what became of it; return whether it succeeded."""
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


def run_lanes(plan: Plan, deadline: float, start: Callable[[str], subprocess.Popen]) -> None:
    """A process for each lane, started again after a failure, killed with all of its group at the deadline.

    `start(lane)` starts one, as the leader of a group of its own, that calls `work_through`.
    """
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


def settle(plan: Plan, budget: float) -> None:
    """Say of units that were running when their process was killed that they were cut, or that a call of `budget`
    seconds is too short for them."""
    for unit in plan.units:
        if not plan.state.running(unit):
            continue
        seconds = time.time() - float(plan.state.path(unit, "running").read_text())
        if not unit.resumes and seconds > 0.8 * budget:
            plan.state.write(unit, "failed", f"it takes more than {seconds:.0f} s: give a larger --budget")
        else:
            plan.state.write(unit, "cut", str(seconds))
        print(f"cut     {unit.key} after {seconds:.0f} s", flush=True)
