"""What a trained network is used for: to segment, to measure, and to write labels that a training accepts."""
