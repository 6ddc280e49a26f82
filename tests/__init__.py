"""Tests of the library and its jobs; what they share is in `tests.support`."""
