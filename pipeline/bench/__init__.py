"""Speed as ratios: every figure stands beside a peer measured in the same run."""
