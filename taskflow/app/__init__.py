"""Layer 3: declaring and sending jobs."""

import taskflow.app.app  # noqa: F401  # sets the default application, whichever module of the package is imported first
