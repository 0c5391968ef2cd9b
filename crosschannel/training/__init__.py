"""The training loop: tasks provide ``step(net, batch)`` and ``evaluate(net)``; the loop handles data order, precision,
ranks, checkpoints, interrupts and logging."""
