"""The quickstart: a nano model from random weights to answers on a CPU."""
