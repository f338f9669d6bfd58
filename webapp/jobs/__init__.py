"""What: jobs, attempts, rounds, and the conductor that moves them."""
