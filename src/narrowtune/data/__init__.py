"""Rows become batches.

Owns: reading rows of every accepted format, pictures, splits, chat templates to tokens and labels.
May touch: core, the user's data files (read only), tokenizers and processors.
Never: weights, the network behind a row's back, a row or a token that is dropped silently.
"""
