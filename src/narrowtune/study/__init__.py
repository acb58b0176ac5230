"""Recipes side by side: skill after skill, everything scored after each.

Owns: chains of stages, their results and what is computed from them.
May touch: training, evaluation, probes, deltas and what they stand on; the study's own folder.
Never: the choice of a rate on test rows.
"""
