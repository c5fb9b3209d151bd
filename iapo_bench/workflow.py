"""The package's interface to the Snakefile: a tier's runs, and the settings of their jobs."""

import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import click
import psutil

from iapo_bench.config.job import Kind
from iapo_bench.config.method import MethodConfig
from iapo_bench.config.model import MICRO_SOURCES
from iapo_bench.config.reading import read_yaml
from iapo_bench.config.report import BASE
from iapo_bench.config.section import ByContent, digest, identity
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.world import PrepareJob
from iapo_bench.errors import UserError, explain, unknown
from iapo_bench.files import read_json, write_json
from iapo_bench.machine.code import code_digest
from iapo_bench.machine.gpu_lease import visible_devices
from iapo_bench.machine.provenance import checksums
from iapo_bench.plugins import list_methods
from iapo_bench.report.controls import CONTROLS, SHORTEST_OF
from iapo_bench.staleness import SettingsFiles
from iapo_bench.worlds.load import load_world, source_files, stated
from iapo_bench.worlds.prepare import split_digests
from iapo_bench.worlds.text import ChatWorld

# Every step allocates and frees large tensors: let malloc keep its heap instead of returning it to the kernel.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
KINDS = get_args(Kind)
TRAINED = re.compile(r"(?P<method>[^/]+)/seed(?P<seed>\d+)")
TRIAL = re.compile(r"tune/(?P<method>[^/]+)/trial(?P<trial>\d+)")
POINT = re.compile(r"sensitivity/point(?P<point>\d+)")

# The module that does each artefact's work, for jobs that have no settings of their own.
ARTEFACTS = {
    "table": "iapo_bench.report.table1",
    "comparisons": "iapo_bench.report.comparisons",
    "frontier": "iapo_bench.report.frontier",
    "paired": "iapo_bench.report.paired",
    "page": "iapo_bench.report.page",
    "ablations": "iapo_bench.report.ablations",
    "claims": "iapo_bench.report.claims",
}


def needs_vllm(tier: TierConfig) -> bool:
    """Whether any job of the tier generates with vLLM."""
    return "vllm" in (tier.train.engine, tier.evaluate.engine, tier.lm_eval.backend)


def machine() -> dict[str, int]:
    """This machine's memory in MB and its visible GPUs, as Snakemake resources."""
    return {"mem_mb": psutil.virtual_memory().total // 2**20, "gpu": len(visible_devices())}


def prepare_environment() -> None:
    """Put this interpreter on the PATH of jobs, and set the variables for their threads and heaps."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Spin-waiting OpenMP threads starve other jobs (10x slower on a busy machine).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name, value in MALLOC.items():
        os.environ.setdefault(name, value)


class Workflow:
    """The jobs of a tier. Each reads its settings from an input file whose name is a digest of everything that can
    change the result: settings, code, and the contents of files from outside the workflow. A job is stale exactly when
    that name differs from its last run's, or an input was made anew.
    """

    def __init__(self, tier: TierConfig) -> None:
        self.work = f"results/{tier.folder}"  # what jobs make
        self.files = SettingsFiles(Path(self.work) / "settings")
        self.tier = tier = self._stated(tier)
        self.out = "results" if tier.tier == "micro" else f"results/{tier.shown}"  # what people read
        self.methods = list(tier.methods)
        self.seeds = tier.train.seeds

    @property
    def runs(self) -> dict[str, str]:
        """Directories of the base and of every row, by their name in tables: METHOD/SEED."""
        rows = {
            f"{method}/{seed}": f"{self.work}/{method}/seed{seed}"
            for method in self.methods
            for seed in self.tier.train_seeds(method)
        }
        return {BASE: f"{self.work}/{BASE}"} | rows

    @property
    def trained(self) -> dict[str, str]:
        """The `runs` that are trained: all but the base and the checkpoints that are only measured."""
        kept = {f"{method}/{seed}" for method in self.tier.trained for seed in self.seeds}
        return {name: folder for name, folder in self.runs.items() if name in kept}

    @property
    def trials(self) -> list[str]:
        """Runs of the search."""
        return self.trials_of(self.tier.searched if self.tier.tune else [])

    def trials_of(self, names: Iterable[str]) -> list[str]:
        """Runs of the search among the settings of some methods."""
        return [f"tune/{name}/trial{trial}" for name in names for trial in range(len(self.tier.trials(name)))]

    @property
    def zoo(self) -> list[str]:
        """The table's methods, then every other method."""
        return list(dict.fromkeys([*self.tier.trained, *list_methods()]))

    @property
    def untuned(self) -> list[str]:
        """Methods that the zoo tunes itself: those without an entry in the tier, if the tier can tune."""
        known = {*self.tier.methods, *self.tier.ablations, *self.tier.tuned}
        return [name for name in self.zoo if name not in known] if self.tier.tune else []

    @property
    def choices(self) -> str:
        """The file of the zoo's own choices."""
        return f"{self.work}/zoo/tuned.yaml"

    def _tier_for(self, row: str) -> TierConfig:
        """The tier for a row's job: with the zoo's choice for a method that the zoo tunes, once that file exists."""
        if row not in self.untuned or not Path(self.choices).is_file():
            return self.tier
        found = read_yaml(Path(self.choices))[0]
        if row not in found:  # a method that is younger than the zoo's search
            return self.tier
        return self.tier.model_copy(update={"tuned": {**self.tier.tuned, row: MethodConfig(**found[row])}})

    @property
    def points(self) -> list[str]:
        """Runs of the sensitivity grid."""
        grid = self.tier.sensitivity.points() if self.tier.sensitivity and self.tier.tune else []
        return [f"sensitivity/point{point}" for point in range(len(grid))]

    def folders(self, row: str) -> list[str]:
        """Directories of the runs of a row, one for each training seed."""
        if row == BASE:
            return [f"{self.work}/{BASE}"]
        return [f"{self.work}/{row}/seed{seed}" for seed in self.tier.train_seeds(row)]

    # What each job reads.

    def settings(self, job: str, *about: str) -> str:
        """Settings file of a job, by the name of its method here, or the file that identifies an artefact's code.

        An error exits the program: Snakemake would assume that no rule makes the job's output, and silently keep an old
        one.
        """
        try:
            return self.artefact(job) if job in ARTEFACTS else getattr(self, job)(*about)
        except Exception as error:
            line = explain(error) or "".join(traceback.format_exception(error)).rstrip()
            click.echo(f"Error: {line}", err=True)
            raise SystemExit(2) from None

    def prepare(self, dataset: str = "") -> str:
        """Settings file of `prepare`, for the tier's problems or for those of another measured dataset."""
        job = self._prepare_job(dataset)
        name = f"prepare {dataset}" if dataset else "prepare"
        return self.files.write(name, job, "iapo_bench.worlds.prepare", source_files(job.world))

    def base(self) -> str:
        """Settings file of `base`."""
        job = self.tier.base_job()
        if folder := self.tier.model.directory:
            job = job.model_copy(update={"files": checksums(folder, self.files.checksum)})
        read = ("questions", "golds", "solutions")
        problems = {split: self._problems(split, read) for split in ("train", "validation")} if job.model.sft else {}
        return self.files.write("base", job, "iapo_bench.train.base", self._dataset_code, problems=problems)

    def checkpoint(self, row: str) -> str:
        """Settings file for fetching a row that is measured and not trained."""
        job = self.tier.checkpoint_job(row)
        return self.files.write(f"checkpoint {row}", job, "iapo_bench.train.base", self._dataset)

    def train(self, run: str) -> str:
        """Settings file for training a run. Raises UserError for the name of any other run."""
        tier, seed = self.tier, self.tier.tune.seed if self.tier.tune else 0
        if found := TRIAL.fullmatch(run):
            job = tier.train_job(found["method"], seed, trial=int(found["trial"]))
        elif (found := POINT.fullmatch(run)) and tier.sensitivity:
            options = tier.sensitivity.points()[int(found["point"])]
            job = tier.train_job(tier.sensitivity.method, seed, options=options)
        elif found := TRAINED.fullmatch(run):
            job = self._tier_for(found["method"]).train_job(found["method"], int(found["seed"]))
        else:
            raise UserError(f"'{run}' is not a training run: name METHOD/seedN")
        if job.method.name not in list_methods():
            raise unknown("method", job.method.name, list_methods())
        plugins = [*job.plugins, *self._dataset]
        return self.files.write(f"train {run}", job, "iapo_bench.train.run", plugins, problems=self._problems("train"))

    def sample(self, run: str, split: str) -> str:
        """Settings file for sampling a run."""
        job, questions = self.tier.sample_job(split), self._problems(split)["questions"]
        name = f"sample {run} {split}"
        plugins = source_files(job.world)[:1]
        return self.files.write(name, job, "iapo_bench.evaluate.sample", plugins, problems=questions)

    def grade(self, run: str, split: str) -> str:
        """Settings file for grading a run."""
        job, golds = self.tier.grade_job(split), self._problems(split)["golds"]
        plugins = source_files(job.world)[:1]
        return self.files.write(f"grade {run} {split}", job, "iapo_bench.evaluate.grade", plugins, problems=golds)

    def lm_eval(self, run: str) -> str:
        """Settings file of lm-eval on a run."""
        job, problems = self.tier.lm_eval_job(), self._problems("test")
        return self.files.write(
            f"lm_eval {run}", job, "iapo_bench.evaluate.lm_evaluation", self._dataset, problems=problems
        )

    def metrics(self, row: str, dataset: str = "") -> str:
        """Settings file of the summary of a row, on the tier's problems or on another dataset's."""
        name = f"metrics {row} {dataset}" if dataset else f"metrics {row}"
        job = self._tier_for(row).row_job(row, dataset)
        return self.files.write(name, job, "iapo_bench.report.rows", runs=self.folders(row))

    def controls(self) -> str:
        """Settings file of the controls, which are made from the base's samples."""
        return self.files.write("controls", self.tier.row_job(BASE), "iapo_bench.report.controls")

    @property
    def control_rows(self) -> list[str]:
        """The controls' rows; none if there are too few samples to take the shortest of."""
        return list(CONTROLS) if self.tier.evaluate.n_samples >= SHORTEST_OF else []

    def timing(self) -> str:
        """Settings file for timing every row with the machine to itself."""
        job = self.tier.timing_job()
        plugins = dict.fromkeys(path for each in job.train.values() for path in each.plugins)
        return self.files.write(
            "time", job, "iapo_bench.report.timing", [*plugins, *self._dataset], runs=list(self.runs)
        )

    def costs(self) -> str:
        """Settings file of the costs."""
        return self.files.write("costs", self.tier.costs_job(), "iapo_bench.report.costs", runs=list(self.runs))

    def wallclock(self) -> str:
        """Settings file of the wall-clock table."""
        return self.files.write("wallclock", self.tier.labels, "iapo_bench.report.wallclock", runs=list(self.runs))

    def curves(self) -> str:
        """Settings file of the training curves."""
        return self.files.write("curves", self.tier.labels, "iapo_bench.report.curves", runs=list(self.runs))

    def lm_eval_table(self) -> str:
        """Settings file of the table of lm-eval's scores."""
        return self.files.write("lm_eval_table", self.tier.labels, "iapo_bench.report.lm_eval", runs=list(self.runs))

    @cached_property
    def departed(self) -> dict[str, str]:
        """Variants that depart as released code does, each with the departure that it follows."""
        from iapo_bench.report.departures import followed  # imports torch, which this target alone needs

        return followed(self.tier)

    def fidelity(self) -> str:
        """Settings file of the comparison with the released code."""
        from iapo_bench.report.departures import fidelity_job

        job = fidelity_job(self.tier)
        plugins = [*self._dataset, *(list_methods()[name] for name in job.methods)]
        return self.files.write(
            "fidelity", job, "iapo_bench.report.fidelity", plugins, problems=self._problems("train")
        )

    def protocol(self) -> str:
        """Settings file of the comparison of protocols."""
        job, runs = self.tier.protocol_job(), list(self.runs)
        return self.files.write("protocol", job, "iapo_bench.report.protocol", self._dataset, runs=runs)

    def token_roles(self, run: str) -> str:
        """Settings file of the scores of a run's tokens."""
        return self.files.write(f"token_roles {run}", self.tier.tokens_job(), "iapo_bench.tokens.scores", self._dataset)

    def calibration(self) -> str:
        """Settings file of the base's calibration."""
        return self.files.write(
            "calibration", self.tier.calibration_job(), "iapo_bench.tokens.calibration", self._dataset
        )

    def role_tables(self) -> str:
        """Settings file of the tables of token roles."""
        job, runs = self.tier.roles_job(), list(self.runs)
        return self.files.write("role_tables", job, "iapo_bench.tokens.roles", self._dataset, runs=runs)

    def tune(self) -> str:
        """Settings file of the choice on validation. Prints which searched settings an entry of the tier overrides."""
        job = self.tier.tune_job()
        for name in self.tier.searched:
            if names := self.tier.overruled(name):
                place = f"{self.tier.place('methods', name)} sets {', '.join(names)} of {name}"
                click.echo(f"warning: {place}, so tables will keep that and not the search's choice", err=True)
        return self.files.write("tune", job, "iapo_bench.report.tuning")

    def tune_zoo(self) -> str:
        """Settings file of the choice for the methods beyond the table."""
        return self.files.write("tune zoo", self.tier.tune_job(self.untuned), "iapo_bench.report.tuning")

    def sensitivity(self) -> str:
        """Settings file of the sensitivity table."""
        return self.files.write("sensitivity", self.tier.sensitivity_job(), "iapo_bench.report.sensitivity")

    def artefact(self, name: str) -> str:
        """File that identifies the code and the rows of a table or figure without settings."""
        rows = [*self.runs, *self.tier.ablations, *self.tier.also]
        return self.files.write(name, None, ARTEFACTS[name], rows=rows)

    def _stated(self, tier: TierConfig) -> TierConfig:
        """The tier with what identifies its local inputs: the content of models' directories, and the kind of golds in
        files of problems. Raises UserError for an option that the dataset does not have."""
        try:
            world = stated(tier.world, tier.seed)
        except UserError as error:
            raise UserError(f"{tier.place('world', 'options')}: {error}") from None
        also = [stated(other, tier.seed) for other in tier.evaluate.also]
        changes: dict[str, Any] = {"world": world, "evaluate": tier.evaluate.model_copy(update={"also": also})}
        if tier.model.source not in MICRO_SOURCES and tier.model.directory:
            changes["model"] = tier.model.model_copy(update={"source": self._by_content(tier.model.directory)})
        for section in ("methods", "ablations"):
            entries = dict(getattr(tier, section))
            for name, entry in entries.items():
                if entry and entry.checkpoint and (folder := Path(entry.checkpoint, entry.subfolder or "")).is_dir():
                    found = {"checkpoint": self._by_content(folder), "subfolder": None}
                    entries[name] = entry.model_copy(update=found)
            changes[section] = entries
        return tier.model_copy(update=changes)

    def _by_content(self, folder: Path) -> ByContent:
        return ByContent(folder, digest(checksums(folder, self.files.checksum)))

    @property
    def _dataset(self) -> list[Path]:
        """The dataset's file."""
        return self._dataset_code[:1]

    @property
    def _dataset_code(self) -> list[Path]:
        """The dataset's file, and those of the datasets that it holds out."""
        return source_files(self.tier.world)

    def _prepare_job(self, dataset: str = "") -> PrepareJob:
        job = self.tier.prepare_job(dataset)
        if job.world.file:
            job = job.model_copy(update={"files": {job.world.name: self.files.checksum(Path(job.world.file))}})
        elif job.world.data_dir:
            job = job.model_copy(update={"files": checksums(Path(job.world.data_dir), self.files.checksum)})
        return job

    def _problems(self, split: str, parts: Iterable[str] = ("questions", "golds")) -> dict[str, str]:
        """A digest for each part of a split: of its content if the data are local or generated, otherwise of the
        recipe."""
        place, _, split = split.rpartition("/")
        job = self._prepare_job(place.removeprefix("also/"))
        recipe = digest([identity(job), code_digest("iapo_bench.worlds.prepare", source_files(job.world))])
        if not job.files and isinstance(load_world(job.world, job.seed), ChatWorld):  # they come from the hub
            return dict.fromkeys(parts, recipe)
        known = Path(self.work) / "settings" / f"problems-{recipe}.json"
        if not known.is_file():
            write_json(known, split_digests(job))
        digests = read_json(known)[split]
        return {part: digests[part] for part in parts}

    def is_current(self, row: str) -> bool:
        """Whether a row's test grades exist for every training seed, and every job behind them ran with the current
        settings, inputs and code. Prints why for jobs that did not."""
        jobs = [self.prepare(), self.base()]
        made: list[list[Path]] = []  # by run, each file from the one before
        for folder in self.folders(row):
            run = folder.removeprefix(f"{self.work}/")
            if row != BASE:
                jobs.append(self.checkpoint(row) if row in self.tier.measured else self.train(run))
            jobs += [self.sample(run, "test"), self.grade(run, "test")]
            start = [] if row == BASE or row in self.tier.measured else [f"{self.work}/{BASE}"]
            models = [Path(place) / "model" for place in [*start, folder]]
            made.append([*models, *(Path(folder) / "test" / f"{name}.parquet" for name in ("samples", "grades"))])
        return all(map(_in_order, made)) and all(map(self.files.ran, jobs))


def _in_order(paths: Sequence[Path]) -> bool:
    """Whether files are all there, none older than the one before it."""
    times = [path.stat().st_mtime_ns for path in paths if path.exists()]
    return len(times) == len(paths) and times == sorted(times)
