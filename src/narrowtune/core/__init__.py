"""Plain values that every room may use.

Owns: errors, recipes, settings, results, and what is recorded of the machine and the software.
May touch: the standard library, pydantic, yaml, psutil; files that it is asked to hash or read.
Never: a tensor, a model, an import of torch or of any room above.
"""
