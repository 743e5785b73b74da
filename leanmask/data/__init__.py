"""Data in: COCO files with partial labels, their checks and splits, augmentation, loading, and the embedded benchmark."""
