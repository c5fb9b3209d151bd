"""A whole tier: its sections, the precedence of settings, and the settings of each job.

A tier is a file `configs/<tier>.yaml`. Later sources override earlier ones: defaults, the tier's sections, the choice
made on validation (`configs/tuned/<tier>[/<dataset>].yaml`), the tier's entry for a method, the command line.
"""

from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from iapo_bench.config.evaluate import EvalConfig, SampleJob
from iapo_bench.config.fidelity import FidelityJob
from iapo_bench.config.grade import GradeJob
from iapo_bench.config.job import LARGE, SMALL, JobConfig, JobRequest, Kind, Request
from iapo_bench.config.lm_eval import LmEvalConfig, LmEvalJob
from iapo_bench.config.method import Candidate, MethodConfig, Selection
from iapo_bench.config.model import MICRO_SOURCES, BaseJob, CheckpointJob, ModelConfig
from iapo_bench.config.profiles import TRAIN_OF_PROFILE
from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.reading import CONFIG_DIR, first_problem, merge, read_yaml
from iapo_bench.config.report import CalibrationJob, CostsJob, Labels, ProtocolJob, RolesJob, RowJob, TokensJob
from iapo_bench.config.section import FREE, Misplaced, Options, Section, identity, slug
from iapo_bench.config.timing import TimingJob
from iapo_bench.config.train import UNWATCHED, MethodChoice, TrainConfig, TrainJob
from iapo_bench.config.tune import SensitivityConfig, SensitivityJob, TuneConfig, TuneJob
from iapo_bench.config.world import PrepareJob, WorldConfig
from iapo_bench.errors import UserError, unknown
from iapo_bench.plugins import list_methods

BASE = "base"
# Keys of the `train` section that a method's entry may change.
TRAIN_KEYS = ("lr", "updates_per_rollout", "lr_schedule", "grader", "format_rule")


class TierConfig(Section):
    """A whole tier."""

    tier: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] = Field(description="name of the tier and its file")
    seed: int = Field(default=0, description="seed of data, splits and initialisation")
    gpus: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="GPUs of a training job, one process each; other jobs that can use a GPU take one",
        json_schema_extra=FREE,
    )
    job: JobConfig = Field(default=JobConfig(), description="resources that jobs request from a cluster")
    model: ModelConfig = Field(description="where the base model comes from")
    world: WorldConfig = Field(description="where the problems come from")
    datasets: dict[str, Options] = Field(
        default={},
        description="settings for one choice of world.name, which override the file; results are then kept by dataset",
    )
    prompt: PromptConfig = Field(default=PromptConfig(), description="how problems are put to a chat model")
    train: TrainConfig = Field(description="how every method is trained")
    evaluate: EvalConfig = Field(description="how checkpoints are sampled and measured")
    lm_eval: LmEvalConfig = Field(default=LmEvalConfig(), description="measurements through lm-eval")
    tune: TuneConfig | None = Field(default=None, description="the search on the validation split")
    selection: Selection = Field(
        default="by hand",
        description="how the settings in this file were chosen, where an entry does not say otherwise",
    )
    methods: dict[str, MethodConfig | None] = Field(description="the rows of the table")
    ablations: dict[str, MethodConfig] = Field(default={}, description="variants of methods, for a table of their own")
    sensitivity: SensitivityConfig | None = Field(default=None, description="a grid over two options of a method")
    tuned: dict[str, MethodConfig] = Field(
        default={}, description="choices made on validation; read from configs/tuned, not set by hand"
    )
    given: Options = Field(default={}, description="settings from the command line; not set by hand")
    _places: dict[tuple[str, ...], str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _methods_exist(self) -> "TierConfig":
        methods = {
            ("methods" if name in self.methods else "ablations", name): entry.method or name
            for name, entry in self._entries().items()
            if not entry.checkpoint
        }
        if self.sensitivity:
            methods["sensitivity", "method"] = self.parent(self.sensitivity.method)
        for path, name in methods.items():
            if name not in list_methods():
                raise Misplaced(str(unknown("method", name, list_methods())), *path)
        if twice := set(self.methods) & set(self.ablations):
            raise Misplaced("is also in methods: give the ablation another name", "ablations", min(twice))
        if self.model.source in MICRO_SOURCES and self.world.name != "micro":
            raise Misplaced(
                f"the model '{self.model.source}' answers only the micro world, not {self.world.name}: choose another, "
                "model: {source: DIR}",
                *("world", "name"),
            )
        others = [self.world.name, *(world.name for world in self.evaluate.also)]
        if twice := {name for name in others if others.count(name) > 1}:
            raise Misplaced(f"'{min(twice)}' is repeated, or is the tier's own dataset: remove it", "evaluate", "also")
        for section in ("methods", "ablations"):
            if own := [name for name in getattr(self, section) if name == BASE or name.startswith(f"{BASE}_")]:
                raise Misplaced("is reserved for the untrained model: give the method another name", section, own[0])
        return self

    @property
    def measured(self) -> list[str]:
        """The rows that are measured and not trained."""
        return [name for name, entry in self._entries().items() if entry.checkpoint]

    @property
    def trained(self) -> list[str]:
        """The rows of the table that are trained."""
        return [name for name in self.methods if name not in self.measured]

    def train_seeds(self, name: str) -> list[int]:
        """The training seeds of a row; [0] for a row that is measured and not trained."""
        return [0] if name in self.measured else self.train.seeds

    @property
    def shown(self) -> str:
        """Folder of this tier's tables and figures, below `results`, by dataset if the tier has several."""
        return f"{self.tier}/{self.world.name}" if self.datasets else self.tier

    @property
    def folder(self) -> str:
        """Folder of this tier's jobs, below `results`. A user's own problems get a separate folder, so that results for
        the tier's problems stay."""
        own = bool((self.given.get("world") or {}).get("file")) and not self.datasets
        return f"{self.shown}/own/{self.world.name}" if own else self.shown

    @property
    def choices(self) -> str:
        """Path of the choices of `tune`, below `configs/tuned`; a user's own model does not get the tier's choices."""
        own = (self.given.get("model") or {}).get("source") not in (None, *MICRO_SOURCES)
        return f"{self.folder}/{slug(self.model.name)}" if own else self.folder

    def request(self, kind: Kind) -> Request:
        """The resources that a kind of job requests: its own settings, or the defaults for jobs of its size."""
        gpus = self.gpus if kind == "train" else min(self.gpus, 1) if kind in LARGE else 0
        if kind == "base" and not self.model.sft:
            gpus = 0  # the base is only fetched
        of_size: JobConfig | Request = self.job if kind in LARGE else SMALL
        own: JobRequest = getattr(self.job, kind)
        wishes = {name: getattr(own, name) or getattr(of_size, name) for name in ("cpus", "mem_mb", "runtime")}
        return Request(gpus=gpus, **wishes)

    def place(self, *path: str) -> str:
        """Where a setting was set: "FILE:LINE" or the command line; the tier's name if it was not set."""
        return next((self._places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._places), self.tier)

    @property
    def labels(self) -> Labels:
        """The labels of this tier's tables."""
        return Labels(tier=self.tier, model=self.model.name, dataset=self.world.name)

    @property
    def also(self) -> dict[str, WorldConfig]:
        """The other datasets that the models are measured on, by name; the tier's `data_dir` is their default."""
        place = {"data_dir": self.world.data_dir}
        return {
            world.name: world if world.file or world.data_dir else world.model_copy(update=place)
            for world in self.evaluate.also
        }

    def world_of(self, split: str) -> tuple[WorldConfig, str]:
        """The world and split that a path such as `test`, or `also/math500/test` for another dataset, means. Raises
        UserError for a dataset that is not measured."""
        place, _, part = split.rpartition("/")
        dataset = place.removeprefix("also/")
        if dataset and dataset not in self.also:
            raise unknown("dataset of evaluate.also", dataset, self.also)
        return (self.also[dataset] if dataset else self.world), part

    def _entries(self) -> dict[str, MethodConfig]:
        return {name: entry or MethodConfig() for name, entry in {**self.methods, **self.ablations}.items()}

    def parent(self, name: str) -> str:
        """The method that an entry of `methods` or `ablations` trains: its own name, unless it is a variant."""
        entry = self._entries().get(name)
        return (entry.method if entry else None) or name

    def method(self, name: str, trial: int | None = None) -> MethodConfig:
        """The settings of one method: the tuned choice and then the tier's entry, or a trial of the search on top of
        the entry, and then the command line. A variant starts from the settings of the method that it varies.

        A profile sets its training settings in the layer that chooses it; later layers override them.
        """
        parent = self.parent(name)
        own = self._entries().get(name, MethodConfig()).model_dump(exclude_unset=True)
        if parent != name:
            layers = [self.method(parent).model_dump(exclude_unset=True), own]
        else:
            tuned = self.tuned.get(name) if trial is None else None  # no search starts from an earlier one's choice
            layers = [tuned.model_dump(exclude_unset=True) if tuned else {}, own]
        if trial is not None:
            layers.append(self._trial(name, trial))
        given = self._given_for_all()
        if trial is not None:
            given.pop("lr", None)  # of which the trial's is a multiple
        layers += [given, self._given(name)]
        settings: dict[str, Any] = {}
        for layer in layers:
            settings = merge(settings, {**TRAIN_OF_PROFILE.get(layer.get("profile", ""), {}), **layer})
        return MethodConfig(**settings)

    def _given_for_all(self) -> dict[str, Any]:
        train = self.given.get("train") or {}
        return {key: train[key] for key in TRAIN_KEYS if key in train}

    def _given(self, name: str) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for section in ("methods", "ablations"):
            entries = self.given.get(section)
            given |= (entries.get(name) or {}) if isinstance(entries, dict) else {}
        return given

    def selection_of(self, name: str) -> str:
        """How the settings of a row were chosen; for a variant, how its method's were, followed by "varied"."""
        parent = self.parent(name)
        if parent != name:
            return f"{self.selection_of(parent)}, varied"
        entry = self._entries().get(name, MethodConfig())
        own = entry.model_dump(exclude_unset=True, exclude={"selection", "method"})
        if self._given_for_all() or {key: value for key, value in self._given(name).items() if key != "selection"}:
            return "by hand"
        if name in self.tuned:
            return "by hand" if own else "validation"
        if entry.selection or self.selection == "published":
            return entry.selection or self.selection
        return "by hand" if own else "defaults"

    def trials(self, name: str) -> list[Candidate]:
        """The trials of a method: the tier's own, or those of `configs/methods/<method>.yaml`, by number."""
        if self.tune and name in self.tune.candidates:
            return self.tune.candidates[name]
        return read_candidates(self.parent(name))

    def _trial(self, name: str, number: int) -> dict[str, Any]:
        trials = self.trials(name)
        if not 0 <= number < len(trials):
            raise UserError(f"{name} has no trial {number}: it has {len(trials)}, counted from 0")
        changes = trials[number].model_dump(exclude_unset=True, exclude={"lr_times"})
        return {"lr": round_lr(self.train.lr * trials[number].lr_times), **changes}

    def _tried(self, name: str, number: int) -> dict[str, Any]:
        """What a trial changes, as it was trained: the command line may have said otherwise."""
        trained = self.method(name, number).model_dump()
        tried = {key: trained[key] for key in self._trial(name, number)}
        if "options" in tried:
            tried["options"] = {key: trained["options"][key] for key in self._trial(name, number)["options"]}
        return tried

    # What each job gets.

    def checkpoint_job(self, name: str) -> CheckpointJob:
        """The settings for fetching a row that is measured and not trained. Raises UserError for any other row."""
        entry = self._entries().get(name)
        if entry is None or entry.checkpoint is None:
            raise UserError(f"'{name}' has no checkpoint in tier {self.tier}: name an entry that has one")
        return CheckpointJob(
            source=entry.checkpoint,
            subfolder=entry.subfolder,
            world=self.world,
            prompt=self.prompt,
            world_seed=self.seed,
        )

    def prepare_job(self, dataset: str = "") -> PrepareJob:
        """The settings of `prepare`, for the tier's problems or for those of another measured dataset."""
        return PrepareJob(world=self.also[dataset] if dataset else self.world, seed=self.seed)

    def base_job(self) -> BaseJob:
        """The settings of `base`."""
        return BaseJob(model=self.model, world=self.world, prompt=self.prompt, seed=self.seed)

    def train_job(
        self, name: str, seed: int, *, trial: int | None = None, options: dict[str, Any] | None = None
    ) -> TrainJob:
        """The settings for training an entry, or a trial of it; `options` override the entry's own."""
        method = self.method(name, trial)
        changes = {key: getattr(method, key) for key in TRAIN_KEYS if getattr(method, key) is not None}
        return TrainJob(
            method=MethodChoice(
                name=self.parent(name), profile=method.profile, options={**method.options, **(options or {})}
            ),
            train=self.train.model_copy(update=changes),
            world=self.world,
            prompt=self.prompt,
            dtype=self.model.dtype,
            world_seed=self.seed,
            seed=seed,
            gpus=self.gpus,
        )

    def sample_job(self, split: str) -> SampleJob:
        """The settings of `sample`: the table's on a test split, the search's on another."""
        evaluate = self.evaluate
        world, split = self.world_of(split)
        if split != "test" and self.tune:
            changes = {"n_samples": self.tune.n_samples, "seeds": [self.tune.seed], "ks": [self.tune.k]}
            evaluate = EvalConfig(**{**evaluate.model_dump(), **changes})
        return SampleJob(
            evaluate=evaluate,
            world=world,
            prompt=self.prompt,
            world_seed=self.seed,
            dtype=self.model.dtype,
            split=split,
        )

    def grade_job(self, split: str) -> GradeJob:
        """The settings of `grade`."""
        world, split = self.world_of(split)
        return GradeJob(world=world, world_seed=self.seed, split=split)

    def lm_eval_job(self) -> LmEvalJob:
        """The settings of `lm-eval`."""
        own = ("max_tokens", "problems", "batch_size", "engine_memory", "engine_deterministic")
        return LmEvalJob(
            lm_eval=self.lm_eval,
            **{key: getattr(self.evaluate, key) for key in own},
            world=self.world,
            prompt=self.prompt,
            world_seed=self.seed,
            dtype=self.model.dtype,
        )

    def row_job(self, name: str, dataset: str = "") -> RowJob:
        """The settings of the summary of a row, an entry or the base; `dataset`: another one, of `evaluate.also`."""
        labels = self.labels.model_copy(update={"dataset": dataset}) if dataset else self.labels
        if name == BASE:
            return RowJob(labels=labels, method=BASE, parent=BASE, settings=self._asked, ks=self.evaluate.ks)
        if name in self.measured:
            checkpoint = identity(self.checkpoint_job(name))
            settings = {key: checkpoint[key] for key in ("source", "subfolder")}
            return RowJob(
                labels=labels,
                method=name,
                parent=name,
                selection="measured only",
                settings={**settings, **self._asked},
                ks=self.evaluate.ks,
            )
        settings = identity(self.train_job(name, self.train.seeds[0]))
        return RowJob(
            labels=labels,
            method=name,
            parent=self.parent(name),
            profile=self.method(name).profile,
            selection=self.selection_of(name),
            settings={**{key: settings[key] for key in ("method", "train")}, **self._asked},
            ks=self.evaluate.ks,
        )

    @property
    def _asked(self) -> dict[str, Any]:
        """What decides every row's samples besides training: the base, the problems, prompts and sampling."""
        sections = {name: identity(getattr(self, name)) for name in ("model", "world", "prompt", "evaluate")}
        return {**sections, "world_seed": self.seed}

    def fidelity_job(self, methods: list[str], departed: dict[str, str]) -> FidelityJob:
        """The settings of the comparison with the released code; `departed`: variants, each with its departure."""
        return FidelityJob(
            labels=self.labels,
            train=self.train,
            world=self.world,
            prompt=self.prompt,
            world_seed=self.seed,
            dtype=self.model.dtype,
            methods={name: self.method(name).options for name in methods},
            departed=departed,
        )

    def protocol_job(self) -> ProtocolJob:
        """The settings of the comparison of protocols."""
        return ProtocolJob(
            labels=self.labels,
            world=self.world,
            prompt=self.prompt,
            world_seed=self.seed,
            k=max(self.evaluate.ks),
        )

    def costs_job(self) -> CostsJob:
        """The settings of the table of costs."""
        chosen = dict.fromkeys(map(self.parent, self.trained))
        trials = {name: len(self.trials(name)) if name in self.tuned else 0 for name in chosen}
        return CostsJob(trials=trials, completions=self.train.completions)

    def timing_job(self) -> TimingJob:
        """The settings of `time`: two samples of a problem, and five steps of training.

        Raises UserError for a tier that trains on several GPUs.
        """
        if self.gpus > 1:
            raise UserError(f"time trains in one process, but tier {self.tier} on {self.gpus} GPUs: set 'gpus' to 1")
        evaluate = self.evaluate.model_copy(update={"seeds": self.evaluate.seeds[:1], "n_samples": 2, "ks": [1]})
        jobs = {name: self.train_job(name, self.train.seeds[0]) for name in self.trained}
        steps = 5 * self.train.prompts_per_step * self.train.group_size
        short = {
            name: job.model_copy(update={"train": job.train.model_copy(update={"completions": steps, **UNWATCHED})})
            for name, job in jobs.items()
        }
        sampled = self.sample_job("test").model_copy(update={"evaluate": evaluate})
        return TimingJob(labels=self.labels, sample=sampled, train=short)

    def tokens_job(self) -> TokensJob:
        """The settings of `token-roles`."""
        return TokensJob(
            world=self.world,
            world_seed=self.seed,
            dtype=self.model.dtype,
            temperature=self.train.temperature,
            micro_batch_tokens=self.train.micro_batch_tokens,
        )

    def calibration_job(self) -> CalibrationJob:
        """The settings of `calibration`."""
        return CalibrationJob(labels=self.labels, **self.tokens_job().model_dump())

    def roles_job(self) -> RolesJob:
        """The settings of `role-tables`."""
        return RolesJob(labels=self.labels, world=self.world, world_seed=self.seed)

    def tune_job(self, names: list[str] | None = None) -> TuneJob:
        """The settings of the choice on validation for the methods of the table, or for `names`. Raises UserError for a
        tier without `tune`, and for unequal numbers of trials."""
        if self.tune is None:
            raise UserError(f"tier {self.tier} has no 'tune' section: add one, or choose another tier")
        names = self.trained if names is None else names
        trials = {name: [self._tried(name, i) for i in range(len(self.trials(name)))] for name in names}
        if len({len(each) for each in trials.values()}) > 1:
            sizes = ", ".join(f"{name} {len(each)}" for name, each in trials.items())
            raise UserError(f"every method must have the same number of trials, not {sizes}")
        return TuneJob(
            k=self.tune.k,
            tolerance=self.tune.tolerance,
            seed=self.tune.seed,
            trials=trials,
            completions=self.train.completions,
            labels=self.labels,
        )

    def sensitivity_job(self) -> SensitivityJob:
        """The settings of the sensitivity table. Raises UserError for a tier without `sensitivity` or `tune`."""
        if self.tune is None or self.sensitivity is None:
            raise UserError(f"tier {self.tier} lacks a 'sensitivity' or a 'tune' section: sensitivity needs both")
        return SensitivityJob(
            k=self.tune.k, tolerance=self.tune.tolerance, sensitivity=self.sensitivity, labels=self.labels
        )


def round_lr(lr: float) -> float:
    """A learning rate rounded to 12 digits, without the rounding error of a product."""
    return float(f"{lr:.12g}")


def read_candidates(method: str) -> list[Candidate]:
    """The trials of a method, from `configs/methods/<method>.yaml`; without one, three learning rates. Raises UserError
    for a file that lists none."""
    path = CONFIG_DIR / "methods" / f"{method}.yaml"
    if not path.is_file():
        return [Candidate(lr_times=times) for times in (0.5, 1.0, 1.5)]
    content, places = read_yaml(path)
    if not content.get("search"):
        raise UserError(f"{path} lists no trials under 'search': add some, or leave {method} out of the tuning")
    try:
        return TuneConfig(candidates={method: content["search"]}).candidates[method]
    except ValidationError as error:
        raise UserError(first_problem(error, places, str(path), TuneConfig)) from None
