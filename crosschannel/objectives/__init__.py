"""What is predicted and how it is scored: classes (rebalanced or not), or ab itself (L2)."""
