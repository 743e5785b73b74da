"""Between COCO and the formats of drawing tools: Label Studio's JSON and CVAT's XML, both ways.

Every tool has a pair of functions from and to the content of a COCO file; `translate.py` reads, chooses and writes.
What a format cannot say is counted in `Left`, never dropped in silence.
"""
