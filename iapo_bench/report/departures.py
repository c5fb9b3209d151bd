"""Every place where the code released with the IAPO paper (github.com/YinhanHe123/IAPO at c00f0c9) departs from the
equations, and the switch here that reproduces it. The profile `released` sets all switches.

Line numbers refer to `package_code/trainer/g2rpo_trainer.py` unless a file is named.
"""

from dataclasses import dataclass, field
from typing import Any

from iapo_bench.config.fidelity import FidelityJob
from iapo_bench.config.tier import TierConfig
from iapo_bench.method import RELEASED_READING as READING
from iapo_bench.method import RELEASED_Z_SCORE
from iapo_bench.plugins import list_methods

TOKEN_MEAN: dict[str, Any] = {"reduction": "token_mean", "local_rows": 4}
ALL = "all of them"
COMPARED = ("grpo", "dapo", "gfpo", "gtpo", "sgrpo", "iapo")


@dataclass(frozen=True)
class Departure:
    """One departure. Its switch is `options` of the methods' classes, settings of the `train` section, or both; a
    departure with neither is not reproduced."""

    name: str
    methods: tuple[str, ...]
    text: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def where(self, method: str) -> str:
        """The paths of the settings that reproduce this departure in `method`, or "not reproduced"."""
        file = "/".join(list_methods()[method].parts[-2:])
        options = [f"{file}: {path}" for path in _paths(self.options)]
        return "; ".join([*options, *(f"train.{path}" for path in _paths(self.train))]) or "not reproduced"


def departures_of(method: str) -> list[Departure]:
    """The departures of one method, in the order of `DEPARTURES`."""
    return [departure for departure in DEPARTURES if method in departure.methods]


def followed(tier: TierConfig) -> dict[str, str]:
    """The variants in a tier's `ablations` that reproduce released code, each with its departure: a single one where
    the entry sets nothing else, or `ALL` under the profile `released`."""
    found = {}
    for name, entry in tier.ablations.items():
        own = entry.model_dump(exclude_unset=True, exclude={"method", "selection"})
        if own.get("profile") == "released":
            found[name] = ALL
        for departure in departures_of(tier.parent(name)):
            if own == {**departure.train, **({"options": departure.options} if departure.options else {})}:
                found[name] = departure.name
    return found


def fidelity_job(tier: TierConfig) -> FidelityJob:
    """The settings of the comparison with the released code, for those of a tier's methods that this code contains."""
    departed = followed(tier)
    methods = dict.fromkeys([*tier.trained, *map(tier.parent, departed)])
    return tier.fidelity_job([name for name in methods if name in COMPARED], departed)


def _paths(settings: dict[str, Any]) -> list[str]:
    paths = []
    for key, value in settings.items():
        paths += [f"{key}.{path}" for path in _paths(value)] if isinstance(value, dict) else [f"{key} = {value}"]
    return paths


DEPARTURES = [
    # For all methods.
    Departure(
        "reward z-score",
        COMPARED,
        "Rewards are normalised with the sample standard deviation and eps 1e-4: 1.069 times the paper's at G = 8.",
        "2023",
        options=dict(RELEASED_Z_SCORE),
    ),
    Departure(
        "format reward",
        ("grpo", "dapo", "gfpo", "gtpo", "sgrpo"),
        "The baselines get IAPO's format reward of +-0.5 too.",
        "compute_reward.py:48",
        options={"format_reward": 0.5},
    ),
    Departure(
        "format of one line",
        COMPARED,
        "The format's pattern does not cross lines: a newline within the thoughts costs 0.5, and one must part them "
        "from the answer.",
        "compute_reward.py:34",
        train={"format_rule": "one_line"},
    ),
    Departure(
        "exact strings",
        COMPARED,
        "An answer is correct if it is the gold's string after normalisation: 4.0 is not 4.",
        "compute_reward.py:47",
        train={"grader": "exact"},
    ),
    Departure(
        "learning rate falls",
        COMPARED,
        "The learning rate falls linearly to 0 over the run: the default of the library that nobody changed.",
        "main.py:108",
        train={"lr_schedule": "linear"},
    ),
    Departure(
        "one update per rollout",
        COMPARED,
        "Each rollout is used for one step, so the ratio is 1 and clipping never acts.",
        "1544",
        train={"updates_per_rollout": 1},
    ),
    Departure(
        "token mean of micro-batches",
        ("grpo", "iapo"),
        "The loss is a token mean within each micro-batch of 4 completions (2 for 7B), then a mean over micro-batches.",
        "2255, main.py:152",
        options={"loss": TOKEN_MEAN},
    ),
    Departure(
        "token mean of micro-batches",
        ("dapo", "gtpo"),
        "The token mean is taken within each micro-batch of 4 completions (2 for 7B), then over micro-batches.",
        "main.py:179, main.py:186",
        options={"loss": {"local_rows": 4}},
    ),
    Departure(
        "KL penalty",
        ("dapo", "gtpo"),
        "A KL penalty of weight 0.001, which the papers do without.",
        "main.py:96",
        options={"loss": {"kl_coef": 0.001}},
    ),
    # IAPO.
    Departure(
        "smoothing",
        ("iapo",),
        "Informativeness is (e[t-1] + e[t])/2 - e[t+1], with 0 before the first token.",
        "1304",
        options={"smoothing": True},
    ),
    Departure(
        "last entropy unread",
        ("iapo",),
        "The entropy after the last column is never computed and counts as 0: only a row of full width ends in a large "
        "value.",
        "1145, 1304",
        options={"last_entropy": "unread"},
    ),
    Departure(
        "mean over std",
        ("iapo",),
        "Operator precedence: x - mean/std in place of (x - mean)/std.",
        "2025, 2039",
        options={"normalisation": "mean_over_std"},
    ),
    Departure(
        "sample std of signals", ("iapo",), "That std is the sample's.", "2025, 2039", options={"signal_ddof": 1}
    ),
    Departure(
        "statistics over padding",
        ("iapo",),
        "Mean, std and norm run over the width of the longest row on any process: entropies at a process's own "
        "padding, zeros beyond.",
        "1326, 2025",
        options={"reading": {"padding": True, "ranks": READING.ranks}},
    ),
    Departure(
        "unit norm",
        ("iapo",),
        "Each term is divided by its row's Euclidean norm, so a token's share is about weight/sqrt(T).",
        "2042",
        options={"unit_norm": True},
    ),
    Departure(
        "exploration by entropy",
        ("iapo",),
        "Exploration is the next token's entropy with the sign turned, not the probability of the token.",
        "2050",
        options={"exploration": "entropy"},
    ),
    Departure(
        "position gaps",
        ("iapo",),
        "The postfix gets no positions: it stands where the longest prefix of its chunk (16; 36 for 1.5B) ends.",
        "1205, 1208",
        options={"reading": {"postfix_chunk": READING.postfix_chunk}},
    ),
    Departure(
        "left padding attended",
        ("iapo",),
        "The postfix attends to the padding left of the prompt.",
        "1194",
        options={"reading": {"left_padding": True, "ranks": READING.ranks}},
    ),
    Departure(
        "entropies in bfloat16",
        ("iapo", "gtpo"),
        "Logits and entropies are rounded to bfloat16.",
        "1218, main.py:68",
        options={"reading": {"bfloat16": True}},
    ),
    Departure(
        "clip higher",
        ("iapo",),
        "The upper clipping bound is 0.28, as DAPO's.",
        "main.py:151",
        options={"loss": {"clip_high": 0.28}},
    ),
    # DAPO.
    Departure(
        "no dynamic sampling",
        ("dapo",),
        "Groups of equal outcomes stay.",
        "dapo_trainer.py",
        options={"dynamic_sampling": False},
    ),
    Departure(
        "no overlong punishment",
        ("dapo",),
        "Long completions are not punished.",
        "dapo_trainer.py",
        options={"overlong_cache": 0},
    ),
    # GFPO.
    Departure("six of eight", ("gfpo",), "Keeps k = 6 of 8, nearly all.", "utils.py: top_num_gen", options={"k": 6}),
    Departure(
        "ties of topk", ("gfpo",), "Ties are broken as topk does.", "gfpo_trainer.py:1644", options={"ties": "topk"}
    ),
    Departure(
        "rows dropped",
        ("gfpo",),
        "Rows outside S are gone before rewards, and so from the normaliser.",
        "gfpo_trainer.py:1653",
        options={"normaliser": "kept"},
    ),
    Departure(
        "sequence mean",
        ("gfpo",),
        "The loss is a mean over rows, without an entropy bonus.",
        "main.py:173",
        options={"loss": {"reduction": "sequence_mean", "entropy_coef": 0.0}},
    ),
    # GTPO.
    Departure(
        "bonus by own length",
        ("gtpo",),
        "A share is multiplied by the row's own length, not by how many rows still run.",
        "gtpo_trainer.py:1757",
        options={"bonus_scale": "length"},
    ),
    Departure(
        "bonus on the advantage",
        ("gtpo",),
        "The bonus is added to the normalised advantage, not to the reward before it is normalised.",
        "gtpo_trainer.py:1768",
        options={"bonus_to": "advantage"},
    ),
    Departure(
        "shares over padding",
        ("gtpo",),
        "A row that has ended goes on taking its share, with the entropies at padding.",
        "gtpo_trainer.py:1755",
        options={"reading": {"padding": True, "ranks": READING.ranks}},
    ),
    Departure(
        "eps of shares",
        ("gtpo",),
        "1e-8 is added to H and to sums.",
        "gtpo_trainer.py:1755",
        options={"share_eps": 1e-8},
    ),
    Departure(
        "clip as low",
        ("gtpo",),
        "The upper clipping bound is 0.2.",
        "main.py:186",
        options={"loss": {"clip_high": 0.2}},
    ),
    # S-GRPO.
    Departure(
        "budget by length",
        ("sgrpo",),
        "Coins are thrown for completions of fewer than k tokens, not until k are selected.",
        "s_grpo_lee_trainer.py:1896",
        options={"budget": "length"},
    ),
    Departure(
        "shared coins",
        ("sgrpo",),
        "Every micro-batch of a step, on every process, throws the same coins.",
        "s_grpo_lee_trainer.py:1902",
        options={"coins": "shared"},
    ),
    # Departures that no switch of the profile reproduces.
    Departure(
        "defaults of the command",
        ("iapo",),
        "Left to itself the command reads next-token entropies, without a KL penalty, at weights of 1e-6. The profile "
        "is what the published commands ask for; informativeness, loss.kl_coef, alpha and beta follow the defaults.",
        "utils.py:206, utils.py:253",
    ),
    Departure(
        "attention at padding",
        ("iapo", "gtpo"),
        "GTPO, and IAPO with next-token entropies, ran on flash attention, in which padding sees nothing; here it sees "
        "its row, as in the attention that IAPO's answers are read with.",
        "main.py:70",
    ),
    Departure(
        "rounding of arithmetic",
        ("iapo", "gtpo"),
        "Sums, means and norms of entropies are rounded to bfloat16 too; here they are float64.",
        "1304, 2025",
    ),
    Departure(
        "the very coins",
        COMPARED,
        "The generators of a GPU: orders of micro-batches and S-GRPO's coins are equal in distribution only, and "
        "micro-batches are drawn from all rows, not process by process.",
        "259",
    ),
    Departure(
        "7B's alignment",
        ("iapo",),
        "The 7B run pads completions alike on all processes, though not prompts; reading.ranks: 1 comes close.",
        "1881",
    ),
    Departure(
        "undefined numbers",
        ("iapo",),
        "A batch whose completions have one token each gives NaN there; here such a term is 0.",
        "2025",
    ),
]
