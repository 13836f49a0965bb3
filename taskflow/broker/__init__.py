"""Layer 2: brokers, which store jobs. `protocol` is their contract, and `engine` has the rules that all brokers share."""
