"""From samples to batches: sources, one encoder, collation, and the NeMo data modules."""
