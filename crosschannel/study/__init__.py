"""Real or fake: the perception study of the paper as web pages, from its pictures to its figures."""
