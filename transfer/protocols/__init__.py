"""One file a protocol; each is a function first and a command second."""
