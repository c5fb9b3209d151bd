"""The sections of a tier, the names of its rows, and its folders."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PrivateAttr, model_validator

from iapo_bench.config.evaluate import EvalConfig
from iapo_bench.config.job import LARGE, SMALL, JobConfig, JobRequest, Kind, Request
from iapo_bench.config.lm_eval import LmEvalConfig
from iapo_bench.config.method import MethodConfig, Selection
from iapo_bench.config.model import MICRO_SOURCES, ModelConfig
from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.report import Labels, refused_row
from iapo_bench.config.section import FREE, Misplaced, Options, Section, digest, slug
from iapo_bench.config.train import TrainConfig
from iapo_bench.config.tune import SensitivityConfig, TuneConfig
from iapo_bench.config.world import WorldConfig
from iapo_bench.errors import unknown
from iapo_bench.plugins import list_methods


class TierSections(Section):
    """The sections of a tier."""

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
    def _methods_exist(self) -> Self:
        methods: dict[tuple[str, ...], str] = {
            ("methods" if name in self.methods else "ablations", name): entry.method or name
            for name, entry in self._entries().items()
            if not entry.checkpoint
        }
        if self.sensitivity:
            methods["sensitivity", "method"] = self.parent(self.sensitivity.method)
        methods |= {("tune", "candidates", name): name for name in (self.tune.candidates if self.tune else ())}
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
            for name in getattr(self, section):
                if reason := self._mistaken(name):
                    raise Misplaced(reason, section, name)
        return self

    def _mistaken(self, name: str) -> str:
        """Why there can be no row of this name; empty if there can."""
        if reason := refused_row(name):
            return reason
        parent = self.parent(name)
        return "" if self.parent(parent) == parent else f"is a variant of {parent}, itself a variant: vary its method"

    @property
    def measured(self) -> list[str]:
        """The rows that are measured and not trained."""
        return [name for name, entry in self._entries().items() if entry.checkpoint]

    @property
    def trained(self) -> list[str]:
        """The rows of the table that are trained."""
        return [name for name in self.methods if name not in self.measured]

    @property
    def searched(self) -> list[str]:
        """The methods that `tune` searches: those behind the rows, as a variant starts from its method's settings."""
        return list(dict.fromkeys(map(self.parent, self.trained)))

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
        """Path of the choices of `tune`, below `configs/tuned`; neither another dataset nor a user's own model gets the
        tier's choices."""
        world, model = (self.given.get(section) or {} for section in ("world", "model"))
        another = world.get("name") and not (world.get("file") or self.datasets)
        parts = [self.folder, *([self.world.name] if another else [])]
        if model.get("source") not in (None, *MICRO_SOURCES):
            source, folder = self.model.source, self.model.directory
            # Checkpoints of different models often share the last part of their path.
            parts.append(f"{slug(Path(source).name)}-{digest(str(folder.resolve()) if folder else source)[:6]}")
        return "/".join(parts)

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
