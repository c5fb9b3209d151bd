"""Effect of each departure of the released code on the credit of real rollouts, one at a time and together.

Three quantities are compared over all tokens but padding: the advantage; the gradient's weight, which is the advantage
times the token's weight in the loss; and, for IAPO, each of the two terms that it adds to the outcome's advantage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Method, Reading, Signal, load_method
from iapo_bench.report.departures import ALL, Departure, departures_of
from iapo_bench.signals.statistics import compute_signals
from iapo_bench.train.update import token_scales

# IAPO's terms, each with the option that switches off the other.
TERMS = {"informativeness term": {"beta": 0.0}, "exploration term": {"alpha": 0.0}}


@dataclass(frozen=True)
class Judged:
    """One step's rollout: the batch as the suite judges it, and the released code's judgements, bool (B,): whether the
    answer equals the gold as a string, and whether the completion keeps the one-line format."""

    batch: RolloutBatch
    exact_B: torch.Tensor
    one_line_B: torch.Tensor

    def as_released(self, settings: dict[str, Any]) -> RolloutBatch:
        """The batch judged by the `grader` and `format_rule` of `settings` (`train` section), where these are set."""
        batch = self.batch
        if settings.get("grader") == "exact":
            batch = replace(batch, correct_B=self.exact_B, rewards_B=self.exact_B.float() * 2 - 1)
        if settings.get("format_rule") == "one_line":
            batch = replace(batch, formatted_B=self.one_line_B)
        return batch


class Credits:
    """Credits of methods on rollouts; the signals of each `Reading` are computed once."""

    def __init__(self, rollouts: Sequence[Judged], model: Any, **signal_settings: Any) -> None:
        self.rollouts = rollouts
        self._model = model
        self._settings = signal_settings
        self._signals: dict[tuple[int, Reading], RolloutBatch] = {}

    def measure(
        self, name: str, options: dict[str, Any], departure: Departure | None = None
    ) -> dict[str, torch.Tensor]:
        """The compared quantities by name, float64 (tokens,) each, for a method with `options` and then a departure's
        changes."""
        changes = departure.options if departure else {}
        settings = departure.train if departure else {}
        method = load_method(name, "paper", **{**options, **changes})
        parts: list[dict[str, torch.Tensor]] = []
        for number in range(len(self.rollouts)):
            batch = self._batch(number, method, settings)
            found = _credit(method, batch, number)
            if name == "iapo":
                outcome = _credit(replace(method, alpha=0.0, beta=0.0), batch, number)["advantage"]  # type: ignore[call-arg]
                for term, off in TERMS.items():
                    found[term] = _credit(replace(method, **off), batch, number)["advantage"] - outcome  # type: ignore[arg-type]
            parts.append(found)
        return {what: torch.cat([part[what] for part in parts]) for what in parts[0]}

    def _batch(self, number: int, method: Method, settings: dict[str, Any]) -> RolloutBatch:
        key = (number, method.reading)
        judged = self.rollouts[number]
        if key not in self._signals:
            self._signals[key] = compute_signals(
                self._model, judged.batch, frozenset(Signal), entropies=method.reading, **self._settings
            )
        read = self._signals[key]
        signals = {signal.value: getattr(read, signal.value) for signal in Signal}
        batch = replace(judged.as_released(settings), **signals)
        return replace(batch, rewards_B=method.shape_rewards(batch))


def _credit(method: Method, batch: RolloutBatch, step: int) -> dict[str, torch.Tensor]:
    credit = method.credit(batch, torch.Generator().manual_seed(step))
    parts = torch.Generator().manual_seed(step)
    scales_BT = token_scales(credit.weights_BT, method.loss, batch.max_tokens, parts, counted_B=credit.counted_B)
    mask_BT = batch.completion_mask_BT
    advantages = credit.advantages_BT[mask_BT].double()
    return {"advantage": advantages, "gradient weight": advantages * scales_BT[mask_BT].double() * len(advantages)}


def compare(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """Correlation; size and difference relative to `before` (Euclidean norms); share of entries that change sign."""
    size = float(before.norm())
    spread = before.std() * after.std()
    centred = (before - before.mean()) * (after - after.mean())
    return {
        "correlation": float(centred.sum() / (len(before) - 1) / spread) if spread > 0 else float("nan"),
        "relative_size": float(after.norm()) / size if size else float("nan"),
        "relative_difference": float((after - before).norm()) / size if size else float("nan"),
        "sign_flips": float((before.sign() * after.sign() < 0).double().mean()),
    }


def effects(credits: Credits, methods: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row for each method (name to options), departure and compared quantity.

    A departure that only acts elsewhere, in the optimiser, say, has correlation 1 and difference 0 here. One that needs
    larger groups than the rollouts have is left out.
    """
    rows = []
    group_size = credits.rollouts[0].batch.group_size
    for name, options in methods.items():
        before = credits.measure(name, options)
        for departure in [*departures_of(name), everything(name)]:
            reproduced = departure.options or departure.train
            if not reproduced or departure.options.get("k", 0) > group_size:
                continue
            after = credits.measure(name, options, departure)
            rows += [
                {"method": name, "departure": departure.name, "compared": what, **compare(before[what], after[what])}
                for what in before
            ]
    tokens = sum(int(judged.batch.completion_mask_BT.sum()) for judged in credits.rollouts)
    completions = sum(len(judged.batch.rewards_B) for judged in credits.rollouts)
    return pd.DataFrame(rows).assign(tokens=tokens, completions=completions)


def everything(name: str) -> Departure:
    """All departures of a method as one."""
    train: dict[str, Any] = {}
    for departure in departures_of(name):
        train |= departure.train
    return Departure(ALL, (name,), "The profile `released`.", "", dict(load_method(name).released), train)
