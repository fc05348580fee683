"""What to run and running it: `python -m experiments --help`. docs/architecture.md draws it."""

from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]
CONFIGS = _HERE / "configs"
CHECKOUT = (_HERE / "pyproject.toml").is_file()  # or installed into somebody's environment
# What is made and kept lies here, datasets/ and results/: in the checkout, or where the user works.
ROOT = _HERE if CHECKOUT else Path.cwd()
