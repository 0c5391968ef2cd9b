"""Colorization of pictures with the predictions of a pretext net."""
