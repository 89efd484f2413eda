"""Figures of the data path, each beside peers in the same run."""
