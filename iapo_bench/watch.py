"""Training curves in the terminal, as they grow.

A run claims its `resume/`: if that folder is gone, the run has ended; if nobody claims it, the run was stopped.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from iapo_bench.errors import UserError, damaged
from iapo_bench.files import is_claimed, parse_json, read_text

PANELS = (("reward", "reward"), ("correct", "share correct"), ("length", "mean length (tokens)"))
SMOOTHING = 5  # steps, of the centred running mean
SECONDS = 1.0  # between two polls
PATIENCE = 15.0  # seconds to wait for the next run of a folder
HEIGHT = 12  # of a panel, in lines
COLOURS = ("blue", "red", "green", "magenta", "yellow", "cyan")
# The bits of a braille character, by column and row of its dots, above U+2800.
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass
class _Run:
    name: str
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    seen: tuple[int, ...] = ()

    @property
    def state(self) -> str:
        """One of "running", "stopped" and "ended"; empty before the run begins."""
        resume = self.folder / "resume"
        if resume.is_dir():
            return "running" if is_claimed(resume) else "stopped"
        return "ended" if self.rows else ""

    def look(self) -> None:
        """Read the log again if it changed. An incomplete last line is left for the next poll. Rows without a step are
        skipped: a file of training problems has the same name."""
        log = self.folder / "train.jsonl"
        if not log.is_file():
            return
        stat = log.stat()
        if self.seen != (seen := (stat.st_ino, stat.st_size, stat.st_mtime_ns)):
            lines = read_text(log).split("\n")[:-1]
            hint = "train again"
            rows = [parse_json(line, f"{log}:{number}", hint) for number, line in enumerate(lines, start=1)]
            with damaged(log, hint):
                self.rows = [row for row in rows if "step" in row]
                for row in self.rows:
                    shown = (key for key in (*dict(PANELS), "validation_correct") if key in row)
                    [float(row[key]) for key in ("step", "completions_total", *shown)]
            self.seen = seen


def watch(paths: Sequence[Path], *, once: bool = False) -> None:
    """Draw the curves of runs until none is running; once if standard output is not a terminal, or with `once`.

    `paths`: directories of runs, their `train.jsonl`, or folders of runs, where more may appear. Raises UserError if it
    draws once and no run has a step yet.
    """
    console = Console()
    runs: dict[Path, _Run] = {}
    if once or not console.is_terminal:
        runs = _look(paths, runs)
        if not (started := [run for run in runs.values() if run.rows]):
            raise UserError(f"no steps yet in {' '.join(map(str, paths))}: train.jsonl gets a row after each step")
        console.print(picture(started, console.width))
        return
    idle_since, patience = time.monotonic(), 0.0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            runs = _look(paths, runs)
            started = [run for run in runs.values() if run.rows]
            waiting = Text(f"no steps yet in {' '.join(map(str, paths))}: waiting; press Ctrl-C to stop")
            live.update(picture(started, console.width) if started else waiting, refresh=True)
            if any(run.state == "running" for run in runs.values()):
                idle_since, patience = time.monotonic(), 0.0 if set(paths) >= set(runs) else PATIENCE
            elif started and time.monotonic() - idle_since >= patience:
                return
            try:
                time.sleep(SECONDS)
            except KeyboardInterrupt:
                return


def _look(paths: Sequence[Path], before: dict[Path, _Run]) -> dict[Path, _Run]:
    """The runs that `paths` name, with the rows written so far."""
    folders: dict[Path, None] = {}
    for path in paths:
        folder = path.parent if path.name == "train.jsonl" else path
        within = sorted(log.parent for log in folder.glob("**/train.jsonl"))
        folders |= dict.fromkeys([folder] if folder in within or not within else within)
    above = os.path.commonpath([folder.absolute().parent for folder in folders])
    if len(folders) == 1:
        above = str(Path(above).parent)  # METHOD/seedN
    runs = {folder: before.get(folder) or _Run(os.path.relpath(folder.absolute(), above), folder) for folder in folders}
    for run in runs.values():
        run.look()
    return runs


def picture(runs: Sequence[_Run], width: int) -> RenderableType:
    """The panels side by side, and the last step of each run below."""
    colours = {run.name: COLOURS[i % len(COLOURS)] for i, run in enumerate(runs)}
    panels = Table.grid(padding=(0, 1))
    panels.add_row(*(_panel(key, label, runs, colours, max(16, width // len(PANELS) - 2)) for key, label in PANELS))
    looked = any("validation_correct" in row for run in runs for row in run.rows)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (
        "run",
        "",
        "step",
        "completions",
        "reward",
        "correct",
        "length",
        *(["validation"] if looked else []),
    ):
        table.add_column(column, justify="left" if column in ("run", "") else "right")
    for run in runs:
        last = run.rows[-1]
        numbers = [f"{_mean(run, key):.{digits}f}" for key, digits in (("reward", 3), ("correct", 3), ("length", 1))]
        seen = [row["validation_correct"] for row in run.rows if "validation_correct" in row]
        cells = [str(last["step"]), str(last["completions_total"]), *numbers]
        cells += [f"{seen[-1]:.3f}" if seen else ""] if looked else []
        table.add_row(Text(run.name, style=colours[run.name]), run.state, *cells)
    note = Text(f"x: completions generated; running means over {SMOOTHING} steps, below over the last {SMOOTHING}")
    return Group(panels, table, note)


def _mean(run: _Run, key: str) -> float:
    values = [row[key] for row in run.rows[-SMOOTHING:] if key in row]
    return float(np.mean(values)) if values else float("nan")


def _panel(key: str, label: str, runs: Sequence[_Run], colours: dict[str, str], width: int) -> Text:
    """A panel of `HEIGHT` lines: the label, the curves with the ends of the y axis, the ends of the x axis."""
    curves = {run.name: _curve(run, key) for run in runs if any(key in row for row in run.rows)}
    text = Text(f"{label[:width]}\n", style="bold")
    if not curves:
        return text
    high, low = (end(float(end(y)) for _, y in curves.values()) for end in (max, min))
    last = max(float(x[-1]) for x, _ in curves.values())
    ends = [f"{value:.3g}" for value in (high, low)]
    margin = max(map(len, ends))
    canvas = _Canvas(max(4, width - margin - 1), HEIGHT - 2)
    for name, (x, y) in curves.items():
        canvas.draw(
            x / max(last, 1e-9), (y - low) / (high - low) if high > low else np.full(len(y), 0.5), colours[name]
        )
    for i, line in enumerate(canvas.lines()):
        edge = ends[0] if i == 0 else ends[1] if i == HEIGHT - 3 else ""
        text.append(f"{edge:>{margin}} ", style="default").append(line).append("\n")
    return text.append(f"{' ' * margin} 0{last:>{canvas.width - 1}.0f}", style="default")


def _curve(run: _Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in run.rows if key in row]  # a step without an accepted group has no reward
    values = np.array([row[key] for row in rows], float)
    half = SMOOTHING // 2
    smooth = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
    return np.array([row["completions_total"] for row in rows], float), np.array(smooth)


class _Canvas:
    """Lines in braille characters, two by four dots each."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.bits = np.zeros((height, width), int)
        self.colours: dict[tuple[int, int], str] = {}

    def draw(self, x: np.ndarray, y: np.ndarray, colour: str) -> None:
        """A curve through points from (0, 0), the lower left corner, to (1, 1)."""
        across, down = 2 * self.width - 1, 4 * self.height - 1
        columns = np.arange(round(x[0] * across), round(x[-1] * across) + 1)
        rows = np.rint((1 - np.interp(columns / across, x, y)) * down).astype(int)
        for column, row, before in zip(columns, rows, [rows[0], *rows[:-1]], strict=True):
            step = 1 if row >= before else -1
            for dot in range(before + (step if before != row else 0), row + step, step):
                cell = (dot // 4, column // 2)
                self.bits[cell] |= _BITS[column % 2][dot % 4]
                self.colours[cell] = colour

    def lines(self) -> list[Text]:
        """The lines, each cell in the colour of the curve that was drawn there last."""
        return [
            Text.assemble(*((chr(0x2800 + bits), self.colours.get((i, j), "default")) for j, bits in enumerate(row)))
            for i, row in enumerate(self.bits.tolist())
        ]
