"""Rows -> gradients and checkpoints: arguments, batches, labels, loss, trainers, and the doctor of the data."""
