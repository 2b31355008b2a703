"""What a model can do: tools that take checked input, use a sandbox handle and return plain JSON.

Start at `checked.py`, then `bash.py`. `standard.py` lists the tools that a turn has. No tool knows a
provider, a path of the host or anything of the session but its sandbox.
"""
