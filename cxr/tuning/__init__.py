"""The search over settings: space, trials, effects."""
