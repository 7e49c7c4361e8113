"""The wire format of dpac: models, errors, client. Imports no other room of the house."""
