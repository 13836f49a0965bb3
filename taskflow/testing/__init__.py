"""Layer 5: tools for users' tests. `plugin` provides the pytest fixture."""
