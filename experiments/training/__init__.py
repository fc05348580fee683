"""From a config and images to trained weights, in any number of processes."""
