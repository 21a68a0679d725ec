"""The peers that pgqueue is measured beside: one program each, driven by contestants.py as pgqueue's own is.

registry.py says which there are and how each is configured, install.py gets them, on demand, into .bench/. The programs
run under interpreters and libraries of their own; report.py and report.js are all that they share with the rest.
"""
