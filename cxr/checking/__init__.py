"""The check of a labeled set before training: every image is read once, nothing is trained."""
