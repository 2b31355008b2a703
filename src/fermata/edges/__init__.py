"""Doors to the street: HTTP, the worker process, the command line.

An edge calls one function of a flow or a service and knows neither rows nor providers. Start with
`http/app.py` or `cli.py`.
"""
