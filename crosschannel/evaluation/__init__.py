"""How good colourings are: the paper's Table 1 of any nets that colour, and of its baselines."""
