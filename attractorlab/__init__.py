"""Mechanistic interpretability and attractor analysis of iterative latent reasoners."""
