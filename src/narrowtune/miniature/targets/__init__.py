"""The five skills that are taught: birds, counting, tissue, signs, clock.

Owns: what each asks, answers and draws; each module's `make` is one item from a source of chance.
May touch: the drawing and the words of `miniature`.
Never: another skill's module, or a held-out task's.
"""
