"""A training run: its folder and resumption, the trainer, the loop of a worker and its loaders."""
