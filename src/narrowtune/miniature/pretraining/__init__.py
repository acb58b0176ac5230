"""What reference models learn before any skill: to name, to bind, to relate, to read, to describe.

Owns: the levels of the curriculum and free captions; each `make` is one item from a source of
chance.
May touch: the drawing and the words of `miniature`.
Never: a target skill's questions.
"""
