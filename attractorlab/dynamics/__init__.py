"""Dynamics: consumes a LatentMap, gives nouns; knows nothing of models and tasks."""
