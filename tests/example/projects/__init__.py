"""Projects that are synchronized and import pages, on FastAPI: debounce, hooks, and imports that are followed by their tag."""
