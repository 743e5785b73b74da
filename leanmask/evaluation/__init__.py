"""Measuring: COCO average precision and the quality of pseudo-labels."""
