"""The training loop and what it needs: step, teacher, optimiser, checkpoints and journal. Knows no model and no method."""
