"""What a run will need, before it is queued: memory, time and checkpoints from the model's configuration alone."""
