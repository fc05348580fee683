"""What to run and running it: `python -m experiments --help`. docs/architecture.md draws it."""
