"""The tests, in the package's own folders; the paths that several of them start from."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
GOLDENS = ROOT / "tests" / "goldens"
"""Numbers recorded from upstream programs."""
