"""From a raw record of one source format to a typed sample."""
