"""A whole tier: which of its settings win, and the settings of each job.

A tier is a file `configs/<tier>.yaml`. Later sources override earlier ones: defaults, the tier's sections, the choice
made on validation (`configs/tuned/<tier>[/<dataset>][/<model>].yaml`), the tier's entry for a method, the command line.
"""

from typing import Any

from pydantic import ValidationError

from iapo_bench.config.evaluate import EvalConfig, SampleJob
from iapo_bench.config.fidelity import FidelityJob
from iapo_bench.config.grade import GradeJob
from iapo_bench.config.lm_eval import LmEvalJob
from iapo_bench.config.method import Candidate, MethodConfig
from iapo_bench.config.model import MICRO_SOURCES, BaseJob, CheckpointJob
from iapo_bench.config.profiles import TRAIN_OF_PROFILE
from iapo_bench.config.reading import CONFIG_DIR, first_problem, merge, read_yaml
from iapo_bench.config.report import BASE, CalibrationJob, CostsJob, ProtocolJob, RolesJob, RowJob, TokensJob
from iapo_bench.config.section import identity, is_free
from iapo_bench.config.sections import TierSections
from iapo_bench.config.timing import TimingJob
from iapo_bench.config.train import UNWATCHED, MethodChoice, TrainConfig, TrainJob
from iapo_bench.config.tune import SensitivityJob, TuneConfig, TuneJob
from iapo_bench.config.world import PrepareJob
from iapo_bench.errors import UserError, unknown
from iapo_bench.plugins import list_methods

# Keys of the `train` section that a method's entry may change.
TRAIN_KEYS = ("lr", "updates_per_rollout", "lr_schedule", "grader", "format_rule")
# Settings of training that leave a choice made on validation what it is: a budget, and what it is spent on.
_BUDGET = ("completions", "problems", "seeds")


class TierConfig(TierSections):
    """A whole tier."""

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

    def _trains_otherwise(self) -> bool:
        """Whether the command line makes every method train in another way than the tier, budget and seeds apart."""
        train, world = (self.given.get(section) or {} for section in ("train", "world"))
        fields = TrainConfig.model_fields
        changed = [key for key in train if key not in _BUDGET and not is_free(fields[key])]
        return bool(changed or self.given.get("prompt") or not {"options", "splits"}.isdisjoint(world))

    def _starts_elsewhere(self) -> bool:
        """Whether the command line makes another base of the tier's model, or chooses another for the micro world; a
        user's own model has choices of its own."""
        model = self.given.get("model") or {}
        return model.get("source") in MICRO_SOURCES if "source" in model else not {"sft", "dtype"}.isdisjoint(model)

    def selection_of(self, name: str) -> str:
        """How the settings of a row were chosen; for a variant, how its method's were, followed by "varied"."""
        parent = self.parent(name)
        if parent != name:
            return f"{self.selection_of(parent)}, varied"
        entry = self._entries().get(name, MethodConfig())
        own = entry.model_dump(exclude_unset=True, exclude={"selection", "method"})
        if self._trains_otherwise() or self._given(name).keys() - {"selection"}:
            return "by hand"
        if name in self.tuned:
            return "by hand" if own or self.given.get("tuned") or self._starts_elsewhere() else "validation"
        if entry.selection or self.selection != "by hand":
            return entry.selection or self.selection
        return "by hand" if own else "defaults"

    def overruled(self, name: str) -> list[str]:
        """Settings that the trials of a method vary although its entry, which wins over the choice, sets them."""
        own = _flat(self._entries().get(name, MethodConfig()).model_dump(exclude_unset=True))
        trials = [_flat(self._trial(name, number)) for number in range(len(self.trials(name)))]
        return sorted(key for key in own if len({str(trial.get(key)) for trial in trials}) > 1)

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
        job = CheckpointJob(
            source=entry.checkpoint,
            subfolder=entry.subfolder,
            world=self.world,
            prompt=self.prompt,
            world_seed=self.seed,
        )
        return job.model_copy(update={"source": entry.checkpoint})  # with its content, which validation drops

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
        """The settings of the summary of a row, an entry or the base; `dataset`: another one, of `evaluate.also`.
        Raises UserError for any other name."""
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
        if self.parent(name) not in list_methods():
            raise unknown("row", name, {BASE, *self._entries(), *list_methods()})
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
        names = self.searched if names is None else names
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


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of an entry or a trial, with the method's options on the same level."""
    return {key: value for key, value in settings.items() if key != "options"} | settings.get("options", {})


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
