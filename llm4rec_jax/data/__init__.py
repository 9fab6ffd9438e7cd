"""Interaction data: sources, filters and splits, as NumPy columns without a device framework."""
