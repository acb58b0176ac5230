"""A real model, real skills and real things to keep, so that the tool can be tried at once.

Owns: the demo's weights (one conversion, cached), its skills, what it keeps, its word lists.
May touch: its cache folder and the data folder it is told to write.
Never: execute anything that it downloads, or draw rows that its seed does not determine.
"""
