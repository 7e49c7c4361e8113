"""The only file that names concrete classes together: it builds the processes of `dpac serve` and the CLI."""
