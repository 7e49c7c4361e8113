"""The commands of `dpac`. Modules import what they need when they are called: `dpac status` must start at once."""
