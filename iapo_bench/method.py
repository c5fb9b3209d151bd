"""What a method is: credit assignment, the loss it is used in, and nothing else.

A method is one class in `methods/<name>.py` or `baselines/<name>.py`. Its fields with defaults are its options; the
defaults are the setting that its paper publishes.
"""

import dataclasses
import enum
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.errors import UserError, unknown

METHOD_DIRS = tuple(Path(__file__).parent.parent / folder for folder in ("methods", "baselines"))

PROFILES = ("paper", "released")


class Signal(enum.Enum):
    """A quantity that the core computes only when some method asks for it."""

    OLD_LOGP = "old_logp_BT"
    TOKEN_ENTROPY = "token_entropy_BT"
    ANSWER_ENTROPY = "answer_entropy_BS"


Reduction = Literal["sequence_mean", "token_mean", "constant"]


@dataclass(frozen=True)
class LossSpec:
    """The clipped surrogate around a credit.

    `reduction`: "sequence_mean" averages each row over its weighted tokens, then rows; "token_mean" averages over all
    weighted tokens of the update batch; "constant" divides by rows times the token limit (Dr. GRPO).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0  # k3 estimator, to the initial model
    entropy_coef: float = 0.0  # bonus: subtracted from the loss
    reduction: Reduction = "sequence_mean"


@dataclass(frozen=True)
class Credit:
    """Advantages and loss weights, float32 (B, T).

    A token with weight 0 leaves both the loss and its normaliser; one with weight 1 and advantage 0 stays in the
    normaliser.
    """

    advantages_BT: torch.Tensor
    weights_BT: torch.Tensor


@dataclass
class Method:
    """Base class. Subclasses are dataclasses: fields are options, `name` and `needs` are class attributes.

    Hooks are pure functions of the batch and a generator: no I/O, no model. A method that learns from batch to batch
    (`observe`) keeps what it learnt in `state_dict`, so that a resumed run goes on as if it had never stopped.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Signal]] = frozenset()
    released: ClassVar[dict[str, Any]] = {}  # options that turn the paper's formula into the released code's
    loss: LossSpec = field(default_factory=LossSpec)

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        """Rewards after the method's own terms, float32 (B,)."""
        return batch.rewards_B

    def accept_group(self, correct_G: torch.Tensor) -> bool:
        """Whether to train on a group (dynamic sampling); `correct_G` is bool (G,)."""
        return True

    def observe(self, batch: RolloutBatch) -> None:
        """Take note of a batch before its credit is assigned."""

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        """Assign credit. `batch.rewards_B` holds shaped rewards; `generator` is for a method's own coins."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What `observe` learnt."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


def group_normalise(values_B: torch.Tensor, group_size: int, *, eps: float = 1e-6, ddof: int = 0) -> torch.Tensor:
    """(value - mean) / (std + eps) within each group, (B,). A group without spread gets exactly 0.

    Raises UserError for groups of one, which have no spread to compare with.
    """
    require_groups(group_size)
    values_NG = values_B.view(-1, group_size).double()
    centred_NG = values_NG - values_NG.mean(dim=1, keepdim=True)
    spread = (values_NG.amax(dim=1) - values_NG.amin(dim=1)) > 0
    std_N = values_NG.std(dim=1, correction=ddof)
    out_NG = torch.where(spread[:, None], centred_NG / (std_N[:, None] + eps), 0.0)
    return out_NG.reshape(-1).float()


def require_groups(group_size: int) -> None:
    """Raise UserError when a group holds a single completion: every method here compares completions of one prompt."""
    if group_size < 2:
        raise UserError("group_size must be at least 2: a completion is judged against the others of its prompt")


def list_methods() -> dict[str, Path]:
    """Every method's file by name; `methods/` wins over `baselines/`."""
    found: dict[str, Path] = {}
    for folder in METHOD_DIRS:
        for path in sorted(folder.glob("[a-z]*.py")):
            found.setdefault(path.stem, path)
    return found


def load_method(name: str, profile: str = "paper", **options: Any) -> Method:
    """The method `name` with its options.

    `profile`: "paper" (the equations) or "released" (what the authors' code computes, where it departs).
    `options` win over the profile; `loss` may be a dict of the fields to change.
    Raises UserError for an unknown name, profile or option, listing what exists.
    """
    paths = list_methods()
    if name not in paths:
        raise unknown("method", name, paths)
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    cls = _method_class(name, paths[name])
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    settings = dict(cls.released) if profile == "released" else {}
    settings.update(options)
    for option in settings:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    if isinstance(settings.get("loss"), dict):
        settings["loss"] = _replace_loss(cls(), settings["loss"])
    return cls(**settings)


def _replace_loss(method: Method, changes: dict[str, Any]) -> LossSpec:
    known = {f.name for f in dataclasses.fields(LossSpec)}
    for key in changes:
        if key not in known:
            raise unknown("loss setting", key, known)
    return dataclasses.replace(method.loss, **changes)


def _method_class(name: str, path: Path) -> type[Method]:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Method) and getattr(value, "name", None) == name:
            return value
    raise UserError(f"{path} has no subclass of Method with name = '{name}'")
