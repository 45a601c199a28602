"""The tools that notes come from, one file each; `registry` is the door to all of them.

Nothing is imported here, so that a process that only needs the contract loads no HTTP client.
"""
