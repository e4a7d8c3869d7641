"""From rows to gradients and checkpoints: arguments, batches, labels, loss, trainers, and the data checks (doctor)."""
