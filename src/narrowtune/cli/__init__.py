"""The command line: each command turns its flags into settings and calls one pipeline function.

Owns: the commands, their flags and help, and how errors and results are printed.
May touch: every room below, inside the commands: `--help` waits for no heavy import.
Never: work of its own.
"""
