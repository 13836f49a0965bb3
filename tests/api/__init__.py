"""The promised face of taskflow, as it was written down: `face.txt` is the promise, the modules here are its blocks, typed and run."""
