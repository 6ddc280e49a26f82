"""Train classifiers of pneumonia on chest radiographs and score archives with them, on Ray."""

import os

# ONNX Runtime's builds for Linux send usage data to their maker and write an identifier of the
# machine into the user's cache, unless this is set before they are loaded; in every process.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
