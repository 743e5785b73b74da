"""From an image file and its annotations to what the network sees. The entry is data/dataset.py."""
