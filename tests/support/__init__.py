"""What tests and benchmarks share: files, sound and broken, servers, checkpoints, running jobs."""
