"""Fermata: sandboxed agent sessions that anyone can run themselves.

Start reading at `flows/` for the journeys, `sandboxes/contract.py` for what a sandbox is, and
`docs/architecture.md` for the order of the rooms.
"""

__version__ = "0.1.0"
