"""Doors to language models, each an `Llm` of `turns/contract.py`.

`catalogue.py` knows which models there are and which door leads to each; `demo.py` needs no vendor at all.
Vendor SDKs are imported by `vendors.py` when the first call needs them, because that takes seconds.
"""
