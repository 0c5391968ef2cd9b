"""Colour pictures in a browser: a page that a server of ours answers, or that any static host serves."""
