"""One machine and its life: states and moves, and the providers that make machines.

Knows no session, chat or run: a sandbox has an id, which is also its name at the provider, and perhaps the
id of what it belongs to. Start with `contract.py` (what a provider must do) and `model.py` (the states and
the one table of moves).
"""
