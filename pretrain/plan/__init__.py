"""What a run needs and how fast it will be, on chips that are not here."""
