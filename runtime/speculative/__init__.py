"""Who guesses what comes next: drafters, behind `core.drafting.Drafter`."""
