"""Append-only chunks and cursors: one gap-free sequence per stream, stored before it is seen.

A chunk is one line of JSON and this room never looks inside. Knows no other noun. Start with `service.py`.
"""
