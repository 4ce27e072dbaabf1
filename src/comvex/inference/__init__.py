"""Using a trained model: predictions, and how good they are."""
