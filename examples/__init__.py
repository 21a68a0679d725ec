"""Applications that use pgqueue, to read and to run."""
