"""One local server that speaks the tools' routes, for demos and tests.

`world` holds tables and messages, `server` is what every tool shares (faults, budgets, hooks, the
page), and each tool is one file with its routes. Nothing here is used in production.
"""
