"""Delta: what training changed, as bits that can be put on a base and taken off again.

Owns: the delta file, extracting, applying, undoing, and model folders with a delta in them.
May touch: the selected parameters of the model it is given; the output paths it is given.
Never: training, scores, or a model or folder whose hashes do not match.
"""
