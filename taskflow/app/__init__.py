"""Floor 3: declaring jobs and sending them."""

import taskflow.app.app  # noqa: F401  # whichever part is loaded first: the default application is there when it is asked for
