"""Benchmarks of exported models in servers."""
