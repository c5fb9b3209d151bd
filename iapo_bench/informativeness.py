"""The public name of the early-exit estimator; `iapo_bench.signals` holds it."""

from iapo_bench.signals.informativeness import answer_entropies

__all__ = ["answer_entropies"]
