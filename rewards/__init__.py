"""What training pays a completion, one file each: a function `reward(problem, text, token_ids, outcome)`."""
