"""NeMo-Run executors of the sites, one module for each scheduler."""
