"""Speed and memory side by side with other implementations: `make bench`."""
