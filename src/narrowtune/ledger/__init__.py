"""The skills that one base was taught, in order, with a way back.

Owns: ledger.json and the folder around it: which deltas a state has, going back to one, taking one
out.
May touch: deltas, models, results.
Never: training or evaluation; a file of a skill that was undone is not deleted.
"""
