"""Scoring archives: the manifest, its parts, the results, and resumption."""
