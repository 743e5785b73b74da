"""Finding the unlabelled images worth having: those that look like the objects of rare classes."""
