"""What experiments.bench measures, a module each."""
