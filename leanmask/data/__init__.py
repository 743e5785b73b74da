"""COCO files with partial labels: reading, checks, splits, augmentation, loading, and the embedded benchmark."""
