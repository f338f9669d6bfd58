"""Where: nodes, their enrolment and their corner of the broker."""
