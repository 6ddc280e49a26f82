"""A training run: settings, preparation, the trainer, the workers' loop, folder and resumption."""
