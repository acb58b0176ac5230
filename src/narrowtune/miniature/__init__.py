"""A small world to study forgetting in: drawn pictures with questions and answers, without files.

Owns: the scenes, five skills, eight held-out tasks, captions, and what towers are pre-trained on.
May touch: data (the row's format), core, and the folder it is told to write rows to.
Never: models, files that it reads, or a draw that task, split, seed and number do not determine.
"""
