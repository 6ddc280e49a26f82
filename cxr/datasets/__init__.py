"""Labeled radiographs as cached shards: decoded pixels, frozen features, patient-disjoint folds."""
