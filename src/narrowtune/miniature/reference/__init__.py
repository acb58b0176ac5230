"""Small multimodal models that live in the small world: built, taught to see, then to answer.

Owns: their architectures and tokenizer, the stages of their pre-training, and its batches.
May touch: the small world's tasks, models (loading), data, core, and the folder it writes to.
Never: a target skill's question; those are for the user to teach.
"""
