"""Numbered migrations, run at start under a lock. Rooms do not import this; each describes its own tables
in its `store.py`, and a test compares the two.

A migration that has been released is never edited. Read `versions/` in order.
"""
