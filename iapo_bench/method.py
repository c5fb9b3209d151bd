"""The interface of a method: credit assignment and its loss.

A method is one class in `methods/<name>.py` or `baselines/<name>.py`. Its fields with defaults are its options; the
defaults are the settings that its paper publishes.
"""

import copy
import dataclasses
import difflib
import enum
import inspect
import math
from collections.abc import Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch

from iapo_bench.batch import RolloutBatch, as_mask
from iapo_bench.credit import Credit, assign
from iapo_bench.errors import UserError, blamed, unknown
from iapo_bench.files import first_infinite
from iapo_bench.plugins import list_methods, load_class

PROFILES = ("paper", "released")


def _check_options(options: Any, owner: str) -> None:
    """Raise UserError for a field of the wrong type, outside its Literal, or not finite."""
    hints = get_type_hints(type(options))
    for option in dataclasses.fields(options):
        hint, value = hints[option.name], getattr(options, option.name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise unknown(f"{option.name} of {owner}", str(value), get_args(hint))
        # Plain YAML reads 1e-6 as a string; a number is 1.0e-6.
        if (hint in (bool, int, float) and not isinstance(value, (int, hint))) or (
            isinstance(hint, type) and dataclasses.is_dataclass(hint) and not isinstance(value, hint)
        ):
            raise UserError(f"{option.name} of {owner} must be {hint.__name__}, is {value!r}")
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{option.name} of {owner} must be finite, is {value!r}")


# The released code's z-score of rewards, as in TRL: sample standard deviation, and an eps large enough to matter.
RELEASED_Z_SCORE = {"ddof": 1, "eps": 1e-4}


class Signal(enum.Enum):
    """A quantity that the core computes only when some method asks for it."""

    OLD_LOGP = "old_logp_BT"
    TOKEN_ENTROPY = "token_entropy_BT"
    ANSWER_ENTROPY = "answer_entropy_BS"


@dataclass(frozen=True)
class Reading:
    """How entropies are computed. The defaults are the definition; each field is a departure of the released code.

    `padding`: entropies at padding too (0 by default), which then count in a method's statistics. The rows are split
    into `ranks` parts of whole groups, each padded to its own longest prompt and completion; entropies beyond a part's
    width are 0.
    `postfix_chunk`: prefixes are processed in chunks of this many, and the postfix takes the positions after the
    chunk's longest prefix, which leaves a gap after a shorter one; 0: right after its own prefix.
    `left_padding`: the postfix attends to the padding left of the prompt.
    `bfloat16`: logits, and the sums over the vocabulary, in bfloat16.
    """

    padding: bool = False
    ranks: int = 1
    postfix_chunk: int = 0
    left_padding: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        _check_options(self, "reading")
        if self.ranks < 1 or self.postfix_chunk < 0:
            raise UserError("reading: ranks must be at least 1 and postfix_chunk at least 0")


EXACT = Reading()
# Four processes; chunks of 16 prefixes for the 0.5B and 7B models (36 for 1.5B, and the 7B run has eight processes).
RELEASED_READING = Reading(padding=True, ranks=4, postfix_chunk=16, left_padding=True, bfloat16=True)


Reduction = Literal["sequence_mean", "token_mean", "constant"]


@dataclass(frozen=True)
class LossSpec:
    """The policy-gradient loss around a credit: rho = pi/pi_old, A the advantage, sg stops the gradient.

    `objective`: "clipped" is the clipped surrogate -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A); "cispo"
    is -sg(min(rho, 1 + clip_high)) * A * log pi, where every token keeps a gradient and `clip_low` is unused.
    `ratio`: "token", or "sequence" for GSPO's rho_i = exp(mean_t log rho[i,t]) over the row's weighted tokens; each
    token keeps its own advantage and gradient (GSPO-token, which is GSPO where a row's tokens share one advantage).
    `reduction`: "sequence_mean" averages each row over its weighted tokens, then rows; "token_mean" averages over all
    weighted tokens of the update batch; "constant" divides by rows times the token limit (Dr. GRPO).
    `local_rows`: token means are taken over random parts of this many rows and then averaged over the parts, as the
    released code accumulates gradients over micro-batches; 0: over the whole update batch.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0  # k3 estimator, to the initial model
    entropy_coef: float = 0.0  # bonus: subtracted from the loss
    reduction: Reduction = "sequence_mean"
    objective: Literal["clipped", "cispo"] = "clipped"
    ratio: Literal["token", "sequence"] = "token"
    local_rows: int = 0

    def __post_init__(self) -> None:
        _check_options(self, "the loss")
        if self.local_rows < 0 or (self.local_rows and self.reduction != "token_mean"):
            raise UserError("the loss's local_rows must be 0 or a number of rows, and needs reduction token_mean")

    def idle_choices(self, updates_per_rollout: int) -> list[str]:
        """Names of non-default settings without effect: with one update per rollout rho is 1, so neither clipping nor
        the objective nor the ratio level can act."""
        if updates_per_rollout > 1:
            return []
        choices = ("objective", "ratio", "clip_low", "clip_high")
        return [name for name in choices if getattr(self, name) != getattr(LossSpec, name)]


@dataclass
class Method:
    """Base class. Subclasses are dataclasses: fields are options, `name` and `needs` are class attributes.

    Where `needs` depends on options it is a property. An option of the wrong type, or outside its Literal, raises
    UserError.

    Hooks are pure functions of the batch and a generator: no I/O, no model. What a method learns from batch to batch
    (`observe`) is in its checkpoints (`state_dict`), so that a resumed run continues as if it had never stopped.
    """

    name: ClassVar[str]
    released: ClassVar[dict[str, Any]] = {}  # options that turn the paper's formula into the released code's
    loss: LossSpec = field(default_factory=LossSpec)
    format_reward: float = 0.0  # added for the requested format, subtracted without it

    def __post_init__(self) -> None:
        _check_options(self, self.name)

    @property
    def needs(self) -> frozenset[Signal]:
        """The signals that `credit` reads."""
        return frozenset()

    @property
    def reading(self) -> Reading:
        """How the entropies among `needs` are computed."""
        return EXACT

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        """Rewards after the method's own terms, float32 (B,)."""
        return self.with_format(batch.rewards_B, batch)

    def with_format(self, rewards_B: torch.Tensor, batch: RolloutBatch) -> torch.Tensor:
        """The rewards (B,) plus `format_reward` for the requested format, minus it without, float32 (B,)."""
        return rewards_B.float() + torch.where(batch.formatted_B, self.format_reward, -self.format_reward)

    def accept_group(self, correct_G: torch.Tensor) -> bool:
        """Whether to train on a group (dynamic sampling); `correct_G` is bool (G,)."""
        return True

    def observe(self, batch: RolloutBatch) -> None:
        """Update the method's own state from a batch, before the batch's credit is assigned."""

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        """Assign credit; by default GRPO's, the z-score of the rewards in the group for every token of a row.

        `batch.rewards_B` holds shaped rewards; `generator` is for a method's own random draws.
        """
        return assign(group_normalise(batch.rewards_B, batch.group_size), batch)

    def state_dict(self) -> dict[str, Any]:
        """What `observe` updates: by default every attribute but `loss`, if the class has an `observe` of its own."""
        observes = type(self).observe is not Method.observe
        return {name: copy.deepcopy(value) for name, value in vars(self).items() if observes and name != "loss"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        vars(self).update(copy.deepcopy(state))


def blaming(method: Method, hook: str) -> AbstractContextManager[None]:
    """Turn any error in a method's hook into a one-line UserError with the line of the method's file."""
    return blamed(inspect.getfile(type(method)), f"method {method.name}", hook, getattr(type(method), hook, None))


def per_group(values_B: torch.Tensor, batch: RolloutBatch) -> torch.Tensor:
    """Per-row values (B,) as float64 (N, G), one group per row; a flag becomes 0 or 1.

    Raises UserError for groups of one.
    """
    require_groups(batch.group_size)
    return values_B.view(-1, batch.group_size).double()


def token_limit(setting: float, batch: RolloutBatch, option: str) -> float:
    """A length in tokens from a setting in tokens or, below 1, as a share of `batch.max_tokens`.

    Raises UserError, naming `option`, for a length that is negative or exceeds `batch.max_tokens`.
    """
    limit = batch.max_tokens
    tokens = setting * limit if setting < 1 else setting
    if not 0 <= tokens <= limit:
        raise UserError(f"{option} must be from 0 to max_tokens = {limit}, is {setting}")
    return tokens


def signal(batch: RolloutBatch, which: Signal) -> torch.Tensor:
    """The batch's signal. Raises ValueError when it was not computed."""
    value = getattr(batch, which.value)
    if value is None:
        raise ValueError(f"the batch has no {which.value}: Signal.{which.name} is missing from the method's needs")
    return value


def masked_moments(
    values_RM: torch.Tensor, mask_RM: torch.Tensor, *, ddof: int = 0, noise: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each row's real entries, float64 (R, 1).

    The standard deviation is exactly 0 where max - min is at most `noise` * max(1, largest magnitude). The mask is bool
    or integers of 0 and 1; raises ValueError for any other.
    """
    mask_RM = as_mask(mask_RM, "mask_RM", values_RM)
    values_RM = torch.where(mask_RM, values_RM.double(), 0.0)
    count_R1 = mask_RM.sum(dim=1, keepdim=True)
    mean_R1 = values_RM.sum(dim=1, keepdim=True) / count_R1.clamp(min=1)
    square_R1 = torch.where(mask_RM, (values_RM - mean_R1) ** 2, 0.0).sum(dim=1, keepdim=True)
    std_R1 = (square_R1 / (count_R1 - ddof).clamp(min=1)).sqrt()
    high_R1 = values_RM.masked_fill(~mask_RM, -torch.inf).amax(dim=1, keepdim=True)
    low_R1 = values_RM.masked_fill(~mask_RM, torch.inf).amin(dim=1, keepdim=True)
    scale_R1 = values_RM.abs().amax(dim=1, keepdim=True).clamp(min=1.0)
    return mean_R1, torch.where(high_R1 - low_R1 > noise * scale_R1, std_R1, 0.0)


def masked_normalise(
    values_RM: torch.Tensor, mask_RM: torch.Tensor, *, eps: float = 1e-6, ddof: int = 0, noise: float = 0.0
) -> torch.Tensor:
    """(value - mean) / (std + eps) over each row's real entries, float64 (R, M); 0 elsewhere and without spread.

    For the mask, `ddof` and `noise` see `masked_moments`.
    """
    mask_RM = as_mask(mask_RM, "mask_RM", values_RM)
    mean_R1, std_R1 = masked_moments(values_RM, mask_RM, ddof=ddof, noise=noise)
    return torch.where(mask_RM & (std_R1 > 0), (values_RM.double() - mean_R1) / (std_R1 + eps), 0.0)


def group_normalise(values_B: torch.Tensor, group_size: int, *, eps: float = 1e-6, ddof: int = 0) -> torch.Tensor:
    """(value - mean) / (std + eps) within each group, float32 (B,). A group without spread gets exactly 0.

    Raises UserError for groups of one.
    """
    require_groups(group_size)
    values_NG = values_B.view(-1, group_size)
    everyone_NG = torch.ones_like(values_NG, dtype=torch.bool)
    return masked_normalise(values_NG, everyone_NG, eps=eps, ddof=ddof).view(-1).float()


def padded_widths(mask_BM: torch.Tensor, group_size: int, ranks: int) -> torch.Tensor:
    """Real tokens of the longest row in each row's part, int64 (B,): `ranks` near-equal parts of whole groups."""
    parts = as_mask(mask_BM, "mask_BM").sum(dim=1).view(-1, group_size).tensor_split(ranks)
    return torch.cat([part.amax().expand(part.numel()) for part in parts if part.numel()])


def require_groups(group_size: int) -> None:
    """Raise UserError when a group holds a single completion: every method here compares completions of one prompt."""
    if group_size < 2:
        raise UserError("group_size must be at least 2: a completion is compared with the others of its prompt")


def load_method(name: str, profile: str = "paper", **options: Any) -> Method:
    """The method `name` with its options.

    `profile`: "paper" (the equations) or "released" (what the authors' code computes, where it departs).
    `options` win over the profile; `loss` and `reading` may be dicts of the fields to change.
    Raises UserError for an unknown name, profile or option, listing what exists.
    """
    paths = list_methods()
    if name not in paths:
        raise unknown("method", name, paths)
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    cls = _require_no_slip(load_class(paths[name], Method, name), paths[name])
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    with blamed(paths[name], f"method {name}", "defaults"):
        method = cls()
    for settings in (cls.released if profile == "released" else {}, options):
        for option in settings:
            if option not in known:
                raise unknown(f"option of {name}", option, known)
            if settings is options and (place := first_infinite(settings[option], option)):
                raise UserError(f"option {place} of {name} is not a finite number")
        changes = dict(settings)
        for part in ("loss", "reading"):
            if isinstance(changes.get(part), dict):
                changes[part] = _replace_part(part, getattr(method, part), changes[part])
        method = dataclasses.replace(method, **changes)
    _check_options(method, name)  # a class with a `__post_init__` of its own may have left it out
    with blaming(method, "needs"):
        if not isinstance(method.needs, Set) or not all(isinstance(each, Signal) for each in method.needs):
            raise ValueError(f"must be a set of Signal, is {method.needs!r}")
    return method


def _replace_part(name: str, part: Any, changes: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(part)}
    for key in changes:
        if key not in known:
            raise unknown(f"{name} setting", key, known)
    return dataclasses.replace(part, **changes)


def _require_no_slip(cls: type[Method], path: Path) -> type[Method]:
    """The class. Raises UserError for mistakes that Python accepts: a misspelt hook, or options without @dataclass."""
    options, known = vars(cls).get("__annotations__", {}), {name for name in vars(Method) if name[0] != "_"}
    for name in vars(cls).keys() - options.keys() - known:
        near = difflib.get_close_matches(name, known - vars(cls).keys(), n=1, cutoff=0.8)
        if near:
            raise UserError(f"{path}: {cls.__name__}.{name} is never called: did you mean '{near[0]}'?")
    if options and "__dataclass_fields__" not in vars(cls):
        raise UserError(f"{path}: {cls.__name__} has options, so put @dataclass above the class")
    fields = {option.name for option in dataclasses.fields(cls)}
    for part in cls.__mro__[: cls.__mro__.index(Method)]:
        given = {name for name, value in vars(part).items() if not inspect.ismemberdescriptor(value)}
        if untyped := fields & given - vars(part).get("__annotations__", {}).keys():
            slip = f"{part.__name__}.{min(untyped)}"
            raise UserError(f"{path}: {slip} has no type and is ignored: write `{min(untyped)}: TYPE = ...`")
    own = [getattr(cls, hook) is not getattr(Method, hook) for hook in ("state_dict", "load_state_dict")]
    if any(own) and not all(own):
        raise UserError(f"{path}: {cls.__name__} must have both state_dict and load_state_dict, or neither")
    return cls
