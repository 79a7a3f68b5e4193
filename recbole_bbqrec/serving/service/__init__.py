"""A bundle over HTTP: `bbqrec serve FOLDER`.

Enters: requests, see `schemas`. Leaves: JSON. Needs the extra `serve`. Only the command line imports from here.
"""
