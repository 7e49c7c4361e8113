"""A directory at a checkpoint, opened for use at once: read from where it is stored, under an overlay that takes changes.

lower.py          what the checkpoint holds: names from the index alone, entries and content when they are wanted
local_copy.py     the same on this host, once hydration has brought it
hydration.py      brings it
nodes.py          changed names and attributes, in SQLite
content.py        what was written to a file, over what the checkpoint holds of it
tree.py           the file system that these make together
face.py           its face to FUSE
"""
