"""What is learned: backbones, classifiers, weights, transforms and checkpoints."""
