"""The forward pass that training, evaluation and probes share, and what it costs.

Owns: logits and losses at chosen positions, greedy generation, arithmetic, memory, cost models.
May touch: a model's forward pass; torch's precision and thread settings, restored afterwards.
Never: a weight, a gradient that it does not hand back or clear, a file.
"""
