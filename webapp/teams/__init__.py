"""Who: teams, memberships, API tokens."""
