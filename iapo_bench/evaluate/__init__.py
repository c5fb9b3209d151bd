"""From a checkpoint to measures: sample, grade, measure, lm-eval."""
