"""The contract's own tests, for strangers' code."""
