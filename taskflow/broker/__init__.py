"""Layer 2: brokers, which store jobs. `protocol` is their contract, and `memory` its readable specification."""
