"""A bundle over HTTP: `bbqrec serve FOLDER`.

Enters: requests, see `schemas`. Leaves: JSON. Needs the extra `serve`. Of the
rest of the package the command line alone imports from here.
"""
