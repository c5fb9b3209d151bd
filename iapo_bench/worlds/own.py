"""A user's own problems: one file of JSON lines, CSV or parquet, named on the command line.

Columns: question, answer, and optionally solution (worked) and split. Without a split column, splits are drawn by the
text of the problem and the option `seed`. Only the spelling of integers (`1,234`, `34.0`) is corrected: a row that
cannot be asked or graded is refused, with its line, and integers that float64 has rounded are left out with a count.
"""

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from iapo_bench.config.world import OWN_FORMATS, WorldConfig
from iapo_bench.errors import UserError, unknown
from iapo_bench.files import read_jsonl, read_parquet, read_text
from iapo_bench.plugins import list_datasets, load_class
from iapo_bench.worlds import SPLITS, GraderKind, Problem
from iapo_bench.worlds.grading import check_gold, is_rounded
from iapo_bench.worlds.text import ChatWorld, digest_question

FEWEST = 10
_REQUIRED = ("question", "answer")
_COLUMNS = (*_REQUIRED, "solution", "split")
_HINT = "see docs/your-dataset.md for what it should hold"
_INTEGER = re.compile(r"(-?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+))(?:\.0+)?")


class Entry(NamedTuple):
    """A problem with its worked solution and split, both empty where the file has none, and its place in the file."""

    problem: Problem
    solution: str
    split: str
    place: str


@dataclass(frozen=True)
class OwnWorld(ChatWorld):
    """The problems of one file. `golds`: integer or math; None detects which. Options: `test` and `validation`, shares
    of the problems, and `seed`, for splits that the file does not state."""

    file: Path
    name: str = "own"
    golds: GraderKind | None = None
    options: dict[str, float | int] = field(default_factory=dict)

    @classmethod
    def open(cls, config: WorldConfig, seed: int) -> "OwnWorld":
        """The file that a configuration names; the tier's `seed` is not used. Raises UserError for options that make no
        splits, and for the name of a published dataset."""
        known = {"test": 0.2, "validation": 0.1, "seed": 0}
        for option in config.options:
            if option not in known:
                raise unknown("option of world.file", option, known)
        options = {**known, **config.options}
        if min(options["test"], options["validation"]) <= 0 or options["test"] + options["validation"] >= 1:
            raise UserError("world.options: test and validation must be shares above 0 that add up to less than 1")
        assert config.file
        if (name := _letters(config.name)) in _published():
            raise UserError(
                f"{config.file} is not the dataset '{_published()[name]}': give it another name, "
                "world: {file: ..., name: mine}"
            )
        return cls(Path(config.file), config.name, config.golds, options)

    @property
    def grader(self) -> GraderKind:
        """The stated kind; by default `integer` if every gold is an integer, else `math`."""
        return self.golds or ("integer" if all(_INTEGER.fullmatch(gold) for gold in self._golds) else "math")

    def load(self, split: str) -> list[Problem]:
        """The problems of a split, in the order of the file. Raises UserError with file and line."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        splits = self._splits
        return [entry.problem for entry in self._entries if splits[entry.problem.id] == split]

    def benchmark(self) -> list[Problem]:
        """The test problems."""
        return self.load("test")

    def solutions(self) -> dict[str, str]:
        """The worked solutions that the file holds."""
        return {entry.problem.id: entry.solution for entry in self._entries}

    def left_out(self) -> list[str]:
        """Place and gold of each problem left out because float64 has rounded its gold."""
        return [f"{entry.place}: {entry.problem.answer}" for entry in self._stated if is_rounded(entry.problem.answer)]

    @cached_property
    def _rows(self) -> list[tuple[str, dict[str, Any]]]:
        return list(_read(self.file))

    @cached_property
    def _golds(self) -> list[str]:
        """The golds as text, not yet checked."""
        golds = []
        for place, row in self._rows:
            try:
                golds.append(_text(row, "answer"))
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
        return golds

    @cached_property
    def _stated(self) -> list[Entry]:
        """Every problem once. Raises UserError for one that cannot be asked or graded, or that is repeated with another
        answer or split."""
        entries: dict[str, Entry] = {}
        kind = self.grader
        for (place, row), gold in zip(self._rows, self._golds, strict=True):
            try:
                if odd := [key for key in row if key not in _COLUMNS and key.strip().lower() in _COLUMNS]:
                    raise UserError(f"'{odd[0]}' is ignored: rename it to '{odd[0].strip().lower()}' or something else")
                question = _text(row, "question")
                if kind == "integer" and (whole := _INTEGER.fullmatch(gold)):
                    gold = whole[1].replace(",", "")
                check_gold(gold, kind)
                split = _text(row, "split", optional=True)
                if split and split not in SPLITS:
                    raise unknown("split", split, SPLITS)
                problem = Problem(f"{self.name}-{digest_question(question)[:12]}", question, gold)
                entry = Entry(problem, _text(row, "solution", optional=True), split, place)
                first = entries.setdefault(problem.id, entry)
                if (first.problem.answer, first.split) != (gold, split):
                    raise UserError(f"repeats the problem at {first.place} with another answer or split: keep one")
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
        return list(entries.values())

    @cached_property
    def _entries(self) -> list[Entry]:
        """The problems to split. Raises UserError for too few of them, or if only some state a split."""
        found = [entry for entry in self._stated if not is_rounded(entry.problem.answer)]
        if len(found) < FEWEST:
            raise UserError(f"{self.file} holds {len(found)} problems: at least {FEWEST} are needed for the splits")
        if odd := [entry for entry in found if bool(entry.split) != bool(found[0].split)]:
            lacking = next(entry for entry in (found[0], odd[0]) if not entry.split)
            raise UserError(f"{lacking.place}: this problem has no split but others do: give a split to all or to none")
        return found

    @cached_property
    def _splits(self) -> dict[str, str]:
        """Each problem's split by its id, as the file states or drawn; every split holds at least one problem."""
        entries = self._entries
        splits = {entry.problem.id: entry.split or "train" for entry in entries}
        for split in ("test", "validation"):
            if split in splits.values():
                continue
            if split == "test" and entries[0].split:
                raise UserError(f"{self.file}: no problem has the split 'test': assign some, or leave the column out")
            left = sorted((i for i in splits if splits[i] == "train"), key=self._draw)
            for i in left[: max(1, round(self.options[split] * len(entries)))]:
                splits[i] = split
        if "train" not in splits.values():
            raise UserError(f"{self.file}: no problem is left for training: assign some to the split 'train'")
        return splits

    def _draw(self, problem_id: str) -> str:
        return hashlib.sha256(f"{self.options['seed']} {problem_id}".encode()).hexdigest()


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _published() -> dict[str, str]:
    """Published datasets by the names of the datasets, their files and their repositories, letters and digits only."""
    titles: dict[str, str] = {}
    for name, path in list_datasets().items():
        tables = getattr(load_class(path, object, name), "tables", {}).values()
        known = [name, *(Path(table.file).stem for table in tables), *(table.hub[0] for table in tables)]
        titles |= {_letters(title.rpartition("/")[2]): name for title in known}
    return titles


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with its place for messages."""
    if path.suffix == ".jsonl":
        for number, row in enumerate(read_jsonl(path, _REQUIRED, _HINT), start=1):
            yield f"{path}:{number}", row
    elif path.suffix == ".csv":
        yield from _read_csv(path)
    elif path.suffix == ".parquet":
        table = read_parquet(path, dict.fromkeys(_REQUIRED, object), _HINT)
        for number, found in enumerate(table.to_dict("records"), start=1):
            yield f"{path}: row {number}", {str(key): value for key, value in found.items()}
    else:
        raise UserError(f"{path}: name a file that ends in {', '.join(OWN_FORMATS)}")


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    line = 1
    try:
        header = rows.fieldnames or ()
        for name in _COLUMNS:
            if (count := header.count(name)) > 1 or (not count and name in _REQUIRED):
                raise UserError(f"{path}:1: {count or 'no'} columns '{name}' in the header: {_HINT}")
        line = rows.line_num + 1
        for row in rows:
            if None in row or None in row.values():
                raise UserError(f"{path}:{line}: more or fewer fields than the header: quote fields that hold a comma")
            yield f"{path}:{line}", row
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line} is not CSV ({error}): {_HINT}") from None


def _text(row: dict[str, Any], name: str, *, optional: bool = False) -> str:
    """A field as text; a number in `answer` is converted. Raises UserError for any other value, a number that a float
    has rounded, and an empty field unless it is `optional`."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value = ""
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= 2**53:
            raise UserError(f"'{name}' is {value}, too large for a float to be exact: write it as text")
        value = int(value)
    if isinstance(value, float) and float(f"{value:.15g}") != value:
        raise UserError(f"'{name}' is {value}, rounded when read as a float: write it as text")
    if isinstance(value, int | float) and not isinstance(value, bool) and name == "answer":
        value = str(value)
    if not isinstance(value, str):
        raise UserError(f"'{name}' is {' '.join(repr(value).split())[:80]}: write text")
    if not value.strip() and not optional:
        raise UserError(f"'{name}' is empty")
    return value.strip()
