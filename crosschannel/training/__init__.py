"""The one loop: a task gives ``step(net, batch)`` and ``evaluate(net)``; the loop owns order, precision, ranks,
checkpoints, interrupts and logs."""
