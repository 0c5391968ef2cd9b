"""Real or fake: the paper's perception study as web pages, with commands to build, serve and evaluate it."""
