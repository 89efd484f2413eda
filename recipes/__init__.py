"""What a run is: model, data, optimizer, trainer and checkpoints, composed from rows."""
