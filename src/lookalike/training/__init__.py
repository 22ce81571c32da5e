"""One loop, from a recipe and packed images to a trained model: optimiser, schedule, averaging, checkpoints, resume."""
