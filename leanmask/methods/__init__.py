"""Label-efficient training methods, each a file. A new method is its file and one line in `METHODS`."""
