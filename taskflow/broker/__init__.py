"""Layer 2: where jobs wait. `protocol` is the contract, `memory` its readable specification."""
