"""Pure decisions: profiles, catalog, memory arithmetic, planning, scheduling, routing. No process, clock, print or network."""
