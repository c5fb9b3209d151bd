"""What the model says of a rollout: log-probabilities, entropies, and how much each token tells about the answer."""

from iapo_bench.signals.informativeness import answer_entropies

__all__ = ["answer_entropies"]
