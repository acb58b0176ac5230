"""Evaluation: what the model can do, measured the same way before and after.

Owns: tasks, metrics, the score of every item, intervals and the verdict, the cache of base scores.
May touch: core, data, models, engine; its cache folder and the item files it is told to write.
Never: changes a weight, looks at training, shows a number without its n and standard error.
"""
