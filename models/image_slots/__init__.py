"""Models whose tokens have a slot for each vector of an image."""
