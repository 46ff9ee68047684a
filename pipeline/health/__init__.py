"""What ends a run early or proves that it lives: signals, limits, bad numbers, hangs."""
