"""From a data set and a machine to settings: what fits, each choice with its reason."""
