"""Train classifiers of pneumonia on chest radiographs and score archives with them, on Ray."""
