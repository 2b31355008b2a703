"""Doors to language models, each an `Llm` of `turns/contract.py`.

`catalogue.py` knows which models there are and which door leads to each; `demo.py` needs no vendor at all.
`vendors.py` speaks with vendors, in the words of `openai_chat.py` or `anthropic_messages.py`.
"""
