"""Colouring of pictures with the predictions of a pretext task."""
