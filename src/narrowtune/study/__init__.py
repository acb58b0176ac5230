"""Recipes side by side: skill after skill, everything scored after each.

Owns: chains of stages, their results and what is computed from them; the miniature study's phases,
and the rules by which its claims are decided.
May touch: training, evaluation, probes, deltas and what they stand on; the small world; the study's
own folder.
Never: the choice of a rate on test rows, a verdict that is not computed.
"""
