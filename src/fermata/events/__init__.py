"""The feed of events: one row for each thing that a screen may want to show, written with the change itself.

Knows no other noun: what a kind means is the business of whoever appends it, and who may read a row is
decided where it is read (`views/events.py`). Start with `model.py`.
"""
