"""Layer 5: what users test their jobs with. `plugin` is pytest's way in."""
