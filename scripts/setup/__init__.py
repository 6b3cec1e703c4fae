"""Everything that `make` needs before it can run a rehearsal or a test, made once and then found again.

Standard library only: it runs on the machine's own Python, before there is a virtual environment.
"""
