"""Layer 5: tools for users' tests. `plugin` has the pytest fixture."""
