"""Drift: how far the output distribution moved, base and tuned in one model.

Owns: KL(base‖tuned) on the base's own answers, top-1 agreement, the mass of groups of tokens.
May touch: core, data, models, engine, evaluate.
Never: changes a weight for good, writes a file, decides whether drift is too large.
"""
