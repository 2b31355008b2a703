"""Durable work: runs with a lease and a fence, their steps with recorded results, their effects.

A run is accepted in the transaction of whoever needs it, worked on by one worker at a time, taken over when
that worker dies, and ends visibly. This room knows no other noun; handlers come in through wiring. Start
with `model.py`, then `worker.py`.
"""
