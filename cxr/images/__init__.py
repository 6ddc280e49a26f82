"""From a listed file to the square of gray pixels that a model takes."""
