"""What `check` looks at, piece by piece, and the repairs of `--fix`. The entry is data/check.py."""
