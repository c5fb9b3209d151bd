"""Rewards of training, one file each: a function `reward(problem, text, token_ids, outcome)`."""
