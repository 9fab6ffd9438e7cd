"""Measurements of experiments.bench, a module each."""
