"""The training loop and what it needs: step, teacher, optimiser, checkpoints, journal. Knows no model, no method."""
