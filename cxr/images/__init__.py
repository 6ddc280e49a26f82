"""From the bytes of a file to the square of gray pixels that a model takes."""
