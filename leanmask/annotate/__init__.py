"""Collects labels in the browser: classified points, boxes by extreme clicks, and the review of pseudo-labels.

Torch-free, so that it starts at once on a machine that only labels. What lies where:

    source.py      what is to be labelled: a split's images and objects, or a file of pseudo-labels
    tasks.py       the units of work, and what the page needs to show one
    store.py       answers and leases in SQLite; knows no HTTP and no COCO
    dealing.py     who gets which unit next
    desk.py        source, store and dealing behind one lock: what the server calls
    pictures.py    parts of images and masks, in the sizes that screens have
    guard.py       who may ask the server: token, host, origin, body size; and the headers of every answer
    server.py      the HTTP interface; `static/` is the page
    export.py      answers to COCO files
    statistics.py  agreement and speed
    queue.py       the file that `leanmask suggest` writes
    work.py        a session on disk: source, answers, and the labels written from them
    run.py         the verb: free port, browser, labels at the end
"""
