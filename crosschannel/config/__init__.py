"""Configs: keys are declared once, in the fields of a dataclass.

``types`` defines ranges and roles that a field's type carries; ``keys`` lists the keys of a dataclass; ``load`` builds
a checked config from layers (defaults, YAML, then flags or keyword arguments); ``flags`` parses a command line and
formats its help; ``training`` has the groups of keys that commands share. Nothing here imports torch, and pydantic is
imported only to check values, so that ``--help`` is fast.
"""
