"""A tier's results as a folder, or as the archive that `bundle` makes of one: tables, provenance, grades."""

import gzip
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pandas as pd

from iapo_bench.config.report import BASE
from iapo_bench.errors import UserError, damaged, unknown
from iapo_bench.evaluate.metrics import COLUMNS, Samples
from iapo_bench.files import read_csv, read_parquet, whole_file
from iapo_bench.report.rows import LABELS, Row, read_rows
from iapo_bench.report.steps import read_json
from iapo_bench.worlds import read_problems

TABLE = "table1.csv"
ARCHIVES = (".tar.gz", ".tgz")
_COLUMNS = (*LABELS, "train_seeds", "n_samples")
_NUMBER = re.compile(r"\w+@\d+(_lo|_hi|_std)?")
# The files of a bundle: from the table's folder, from the tier's folder, and, in an archive, the samples.
_TABLES = ("*.csv", "*.md", "*.provenance.json", "figures/*.png")
_COUNTS = ("summaries/**/*", "base/**/provenance.json", "*/seed*/**/provenance.json")
_SAMPLES = ("settings/ran/*", "data/test.jsonl", "data/provenance.json", "**/test/grades.parquet")


@dataclass(frozen=True)
class Results:
    """The folder `root` with the table `name`, and the tier's folder `work` with the outputs of its jobs."""

    root: Path
    work: Path
    table: pd.DataFrame
    name: str = TABLE
    others: dict[str, pd.DataFrame] = field(default_factory=dict)  # rows on other datasets, by dataset
    also: str = ""  # the other dataset that `table` is of

    @property
    def file(self) -> Path:
        """The path of the table."""
        return self.root / self.name

    @property
    def record(self) -> Path:
        """The path of the table's provenance."""
        return self.file.with_suffix(".provenance.json")

    @property
    def provenance(self) -> dict[str, Any]:
        """The table's provenance. Raises UserError when its file is missing or malformed."""
        content = read_json(self.record)
        if not all(isinstance(content.get(key, {}), dict) for key in ("code", "config", "inputs")):
            raise UserError(f"{self.record} does not record code, config and inputs: make the table again")
        return content

    def row(self, name: str) -> pd.Series:
        """A line of the table. Raises UserError for a name that is not in it."""
        found = self.table[self.table["method"] == name]
        if found.empty:
            raise UserError(f"{self.file}: {unknown('row', name, self.table['method'])}")
        return found.iloc[0]

    def on(self, dataset: str) -> Self:
        """The same results with the rows on another dataset that the models were measured on; none where there are
        none."""
        return replace(self, table=self.others.get(dataset, self.table.iloc[:0]), also=dataset)

    def summaries(self) -> dict[str, Row]:
        """The rows that have a summary file, by method."""
        folder = self.work / "summaries" / (f"also/{self.also}" if self.also else "")
        paths = [folder / f"{method}.json" for method in self.table["method"]]
        return {row.method: row for row in read_rows(path for path in paths if path.is_file())}

    def runs(self, row: str) -> dict[str, Path]:
        """A row's run folders by training seed; the base's, which has no seed, by its name."""
        if row == BASE or row.startswith(f"{BASE}_"):
            return {BASE: self.work / BASE}
        seeds = str(self.row(row)["train_seeds"]).split()
        return {seed: self.work / row / f"seed{seed}" for seed in seeds}

    def grades(self, run: Path) -> pd.DataFrame:
        """The graded samples of a run, texts and golds included. Raises UserError when they are missing."""
        return read_texts(run / "test" / "grades.parquet", self.work / "data" / "test.jsonl")


def _unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Extract an archive's files, none of them outside `folder`; early Python 3.11 lacks tarfile's filters."""
    archive.extraction_filter = getattr(tarfile, "data_filter", None)
    for member in archive:
        if not (member.isfile() or member.isdir()) or not (folder / member.name).resolve().is_relative_to(folder):
            raise ValueError(f"{member.name} is not a file inside the archive")
        archive.extract(member, folder)


@contextmanager
def open_results(path: Path) -> Iterator[Results]:
    """The results in a folder or an archive, while the `with` block runs. `path` may also name a table in the folder,
    such as ablations.csv, which then replaces table1.csv.

    Raises UserError for anything else.
    """
    if path.name.endswith(ARCHIVES) and path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            with damaged(path, "fetch or bundle it again"):
                _read_to_its_end(path)
                with tarfile.open(path) as archive:
                    _unpack(archive, Path(folder).resolve())
            yield _read(Path(folder), str(path))
    else:
        named = path.suffix == ".csv"
        yield _read(path.parent if named else path, str(path), path.name if named else TABLE)


def _read_to_its_end(path: Path) -> None:
    """Read to gzip's checksum at the end: tar silently takes a damaged header for the end of the archive."""
    with gzip.open(path) as stream:
        while stream.read(1 << 20):
            pass


def _read(root: Path, where: str, name: str = TABLE) -> Results:
    table = root / name
    if not Path(where).exists():
        raise UserError(f"{where} does not exist: `snakemake --cores all results/{TABLE}` makes a table")
    if not table.is_file():
        raise UserError(f"{where} holds no {name}: name a folder or a bundle of results")
    frame = read_csv(table, {**dict.fromkeys(_COLUMNS, str), "n_problems": int})
    if frame.empty:
        raise UserError(f"{table} is empty: make it again")
    numbers = [column for column in frame if _NUMBER.fullmatch(str(column))]
    with damaged(table, "make it again"):
        frame = frame.astype(dict.fromkeys(numbers, float))
    tier, dataset = str(frame["tier"].iloc[0]), str(frame["dataset"].iloc[0])
    if (twice := frame[["dataset", "method"]].duplicated()).any():
        raise UserError(f"{table} has more than one row '{frame['method'][twice].iloc[0]}': make it again")
    parts = {str(name): rows for name, rows in frame.groupby("dataset", sort=False)}
    # The folder of a named dataset, or of the user's own problems, lies below the tier's.
    places = [above / part for part in (dataset, f"own/{dataset}", ".") for above in (root / tier, root)]
    work = next((place for place in places if (place / "summaries").is_dir()), root / tier)
    return Results(root, work, parts.pop(dataset), name, parts)


def read_texts(path: Path, problems: Path | None = None) -> pd.DataFrame:
    """Graded samples with their texts; `question`, and `gold` where the grades have none, from the file of problems.

    Raises UserError when the file is missing, holds no texts, or has rows that are missing or repeated.
    """
    frame = read_parquet(path, COLUMNS | {"text": str}, "grade again")
    frame.attrs["file"] = str(path)
    with damaged(path, "grade again"):
        Samples.of({0: frame})  # for its checks
    if problems is not None and problems.is_file():
        asked = {problem.id: problem for problem in read_problems(problems)}
        for column, field in (("gold", "answer"), ("question", "question")):
            if column not in frame:
                frame[column] = frame["problem_id"].map({name: getattr(found, field) for name, found in asked.items()})
    return frame


def bundle(results: Path, out: Path) -> list[str]:
    """Write tables, figures, provenance, counts by problem and graded samples of a folder of results to the archive
    `out`, or all but the samples to the folder `out`, small enough for a repository; return the names in it.

    Equal files make equal bundles. A summary in `out` that the results lack is removed. Raises UserError for results
    without a table, and for a folder that is the results' own.
    """
    packed = out.name.endswith(ARCHIVES)
    with open_results(results) as found:
        own = os.path.realpath(out) in map(os.path.realpath, (found.root, found.work))
        if not packed and (own or out.is_file() or (out.suffix and not out.is_dir())):
            raise UserError(f"--out {out}: name a file that ends in .tar.gz, or a folder beside the results")
        kinds = ((found.root, _TABLES), (found.work, _COUNTS + _SAMPLES if packed else _COUNTS))
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for folder, patterns in kinds
            for pattern in patterns
            for path in sorted(folder.glob(pattern))
            if path.is_file()
        }
    if packed:
        with whole_file(out) as partial:
            partial.write_bytes(_archive(files))
        return list(files)
    for path in out.glob("summaries/**/*"):
        if path.is_file() and path.relative_to(out).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        with whole_file(out / name) as partial:
            partial.write_bytes(content)
    return list(files)


def _archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for name, content in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()
