"""leanmask: train instance segmentation from the labels you can afford."""

__version__ = "0.1.0"
