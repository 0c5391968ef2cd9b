"""Configuration: each key is declared once, as a field of a dataclass.

``types`` defines the ranges and roles that a field's type carries, and ``keys`` lists the keys of a dataclass. ``load``
builds a validated config from layers: defaults, YAML files, then flags or keyword arguments. ``flags`` parses a command
line and formats its help. ``training`` defines the groups of keys that commands share. Nothing here imports torch, and
pydantic is imported only to validate values, so that ``--help`` is fast.
"""
