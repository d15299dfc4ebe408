"""How commands ask a college: one interface, by HTTP to the running one or with one in this process."""
