"""What other systems are told of jobs."""
