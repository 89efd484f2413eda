"""Is this machine fit to train? One module for each kind of question; a row for each answer."""
