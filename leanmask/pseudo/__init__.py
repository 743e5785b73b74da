"""Labels that a network writes: masks for a person's boxes, and objects on images that nobody labelled."""
