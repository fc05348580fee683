"""What a study will take before it runs: hours, memory, disk."""
