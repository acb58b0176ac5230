"""Pipeline: the stages in order; the only room that knows all the others.

Owns: what happens when, and what is written to the run folder between the stages.
May touch: every room below.
Never: how a stage does its work, or what the terminal looks like.
"""
