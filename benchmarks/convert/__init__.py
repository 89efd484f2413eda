"""Figures of the converters, beside `cp` and NeMo's own in the same run."""
