"""Signals from a rollout: log-probabilities, entropies, and each token's information about the answer."""

from iapo_bench.signals.informativeness import answer_entropies

__all__ = ["answer_entropies"]
