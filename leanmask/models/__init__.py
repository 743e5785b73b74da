"""Networks, each with the three verbs of models/base.py. A new model is its file and one line in `MODELS`."""
