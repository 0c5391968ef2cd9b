"""From the predictions of a task to pictures in colour."""
