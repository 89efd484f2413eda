"""The only code that knows machines: `python -m launch <verb>`."""
