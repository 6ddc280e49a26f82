"""Labeled radiographs as cached shards: decoded pixels, frozen features, folds by patient."""
