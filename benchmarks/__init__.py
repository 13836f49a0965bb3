"""Measurements that anyone can repeat: `python -m benchmarks`. Figures count as ratios within one run."""
