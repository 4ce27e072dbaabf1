"""Training: recipes, the loop, checkpoints, the run folder."""
