"""What each labelling protocol keeps and takes away. The entry is data/splits.py."""
