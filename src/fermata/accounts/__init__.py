"""Who asks: accounts, organizations and their members, artists, API keys, repository links.

Everything that can own something is an account: people, organizations and artists are kinds of it. Knows
nothing of sessions or sandboxes. Start with `model.py`; `service.py` has the verbs, and `first.py` how the
first account of an installation comes to be. Rules: a key is good for its own account only, and being in an
organization with somebody never lets anyone act as them.
"""
