"""Configs: keys are declared once, in the fields of a dataclass.

``types`` has ranges and roles that stand in a field's type, ``keys`` the walk over a dataclass, ``load`` the way from
layers (defaults, YAML, flags or keywords) to a checked config, ``flags`` the reader of a command line, ``help`` its
help text, and ``training`` the groups of keys that commands share. Nothing here imports torch, and only a check of
values imports pydantic, so that help is fast.
"""
