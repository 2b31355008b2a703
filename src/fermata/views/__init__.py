"""Read-only joins across rooms, for single screens and lists.

Nothing here writes. Start with `sessions.py`.
"""
