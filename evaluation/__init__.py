"""Answers and scores of exported models, with transformers only."""
