"""Which leanmask this is; run folders, weights files and pages say it."""

__version__ = "0.1.0"
