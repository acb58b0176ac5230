"""Train: the only room that changes weights by gradient.

Owns: the Trainer, fp32 masters, the anchor, checkpoints that resume, the proof and the plan.
May touch: selected parameters, `requires_grad`, the run folder's `checkpoint-*` and `train.jsonl`.
Never: scores, verdicts, reports; a parameter that the selection does not name.
"""
