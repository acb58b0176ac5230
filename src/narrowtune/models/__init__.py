"""A checkpoint becomes named parts: load it, say what trains, prove what moved.

Owns: the table of families, loading and saving folders, selections, fingerprints, weight swaps.
May touch: model folders (read; write only where told to), `requires_grad`, and weights in a swap.
Never: rows, batches, optimisers, deltas; never names that a family's table does not spell out.
"""
