"""What a run trains for: one module per task, chosen by `task.kind`; the training loop is one."""
