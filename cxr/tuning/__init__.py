"""The search over settings: space, trials, Ray Tune, effects, results."""
