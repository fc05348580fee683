"""What one run does, from its plan to its record: a detector, a pre-training, a checkpoint."""
