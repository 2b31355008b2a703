"""One agent turn: a user's message in, a streamed and stored answer out.

A turn calls a model (`llms/`), runs the tools that it asks for (`tools/`) through a sandbox handle, and
writes down each move in a journal before the next one, so that another process can pick it up at any point.

Start reading at `model.py` (messages, events, outcomes), then `contract.py` (the seams) and `loop.py` (the
whole agent). `chunks.py`, `encoder.py` and `fold.py` speak the UI message stream; `progress.py` and
`reader.py` serve the loop; `history.py` keeps what the model remembers.

The room must not know databases, HTTP, sessions or who asks: `flows/` connects it to them.
"""
