"""What a place will do to a run, done to it here first: interrupt it, resume it, compare it with one left alone."""
