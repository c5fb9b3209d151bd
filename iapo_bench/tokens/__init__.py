"""What tokens are for and what they tell."""
