"""What `make up` and `make test` install and start. Standard library only: it runs before anything is installed."""
