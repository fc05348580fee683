"""What a network and its training step cost, counted, and what a machine can do."""
