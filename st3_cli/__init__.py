"""The command line of st3: one module a subcommand, no arithmetic here."""
