"""The eight tasks that are kept: diagrams, charts, forms, infographics, street, scenes, science,
puzzles.

Owns: what each asks, answers and draws; each module's `make` is one item from a source of chance.
May touch: the drawing and the words of `miniature`.
Never: a target skill's module, or another task's (what two share lies in `landscape`).
"""
