"""Where rooms meet: one file per journey, with its transactions.

A flow knows the rooms' verbs, and neither HTTP nor SQL nor vendors. Start with `open_session.py`,
`provision.py` and `run_turn.py`: the three journeys everything else hangs on.
"""
