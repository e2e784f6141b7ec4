"""The front door: command line, supervisor, samples, sending and fetching. Knows every room, and loads each lazily."""
