"""The HTTP door: a request in, one call to a room or a flow, an answer out.

Wire models (camelCase) live here and nowhere else; no SQL and no vendor does. Start with `door.py` (what
happens to every request, in which order), then `errors.py` (the one table of statuses), then the file of the
noun you want. `app.py` puts them together.
"""
