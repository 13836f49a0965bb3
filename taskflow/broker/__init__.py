"""Layer 2: brokers, where jobs wait. `protocol` is the contract, and `memory` is its readable specification."""
